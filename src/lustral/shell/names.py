"""What commands know by name, and whether the names that one was given exist; imports nothing heavy."""

from ..core.errors import unknown
from ..evaluate.sizes import SIZES
from . import cards
from .images import names as images
from .options import Classification, Evaluation, Method, Purification

METHODS: dict[Method, str] = {
    "none": "no purification: the classifier alone",
    "diffpure": "diffuse to t*, then reverse with any solver (Nie et al. 2022)",
    "adp": "noise, then steps along the score whose size adapts (Yoon et al. 2021)",
    "gdmp": "rounds of DDPM, each drawn towards the input (Wang et al. 2022)",
    "gnsp": "eight rounds of ever more noise; use with a majority of 10 (Lee and Kim 2023)",
    "adbm": "five DDIM steps, for a denoiser that ADBM trained (Li et al. 2025)",
    "agdm": "DiffPure guided by a robust classifier; a reconstruction, as no code is public (Lin et al.)",
}
"""Purification systems, each in a line."""


def evaluation(options: Evaluation) -> None:
    """Refuses names of an evaluation that nothing has."""
    if options.suite is not None and options.suite not in SIZES:
        raise unknown("suite", options.suite, SIZES)
    images.check(options.data)
    for entry in (options.systems or {}).values():
        system(entry.purification or options.purification, entry.classification or options.classification)
    if not options.systems:
        system(options.purification, options.classification)


def system(how: Purification, judge: Classification | None = None) -> None:
    """Refuses networks of a system that are not there."""
    purifies, guided = how.method != "none", how.method == "agdm"
    networks(judge and judge.classifier, how.denoiser if purifies else None, how.guide if guided else None)


def networks(*named: str | None) -> None:
    """Refuses networks that are not there; None is one that is not used."""
    for name in named:
        if name is not None:
            cards.find(name)
