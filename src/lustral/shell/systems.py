"""Purification systems by name: what each is, in a line, and how options make it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..core.errors import UserError, unknown
from ..core.noise import Key, Rng
from ..core.purifier import Purifier
from ..denoisers.base import Denoiser
from ..purifiers.compose import Pinned
from ..purifiers.presets import adbm, adp, adp_gated, agdm, diffpure, gdmp, gnsp, ssni
from ..purifiers.sample_specific import Reference, ScoreNorm, known_times, published_times
from ..schedules import VP
from . import weights
from .options import Purification

TWIN = Key(0, ("fixed noise",))
NORMS = {"eps": "score_norm_", "single": "single_score_norm_"}
"""Score norms that SSNI can go by, and what their statistics are called in a denoiser's card."""


@dataclass(frozen=True)
class Named:
    """A system: one line about it, and how it is made (None: images stay as they are)."""

    about: str
    make: Callable[[Purification, Denoiser], Purifier] | None = None


def _adp(options: Purification, denoiser: Denoiser) -> Purifier:
    rest = {"steps": 10 if options.steps is None else options.steps, "published": options.published}
    if options.gate is not None:
        return adp_gated(denoiser, options.sigma, threshold=options.gate, **rest)
    return adp(denoiser, options.sigma, **rest)


def _diffpure(options: Purification, denoiser: Denoiser) -> Purifier:
    rest = {"steps": options.steps, "dt": options.dt, "rounds": _rounds(options, 1), "clamp": options.clamp}
    return diffpure(denoiser, _time(options, 0.1), options.solver, **rest)


def _gdmp(options: Purification, denoiser: Denoiser) -> Purifier:
    rest = {"likeness": options.likeness, "strength": options.strength, "steps": options.steps, "dt": options.dt}
    return gdmp(denoiser, _time(options, 0.036), rounds=_rounds(options, 4), **rest)


def _adbm(options: Purification, denoiser: Denoiser) -> Purifier:
    return adbm(denoiser, _time(options, 0.1), steps=5 if options.steps is None else options.steps)


def _agdm(options: Purification, denoiser: Denoiser) -> Purifier:
    guide, _ = weights.load(options.guide, "classifier")
    rest = {"class_weight": options.class_weight, "latent_weight": options.latent_weight}
    rest |= {"steps": options.steps, "dt": options.dt, "rounds": _rounds(options, 1), "clamp": options.clamp}
    return agdm(denoiser, guide, _time(options, 0.1), options.solver, **rest)


METHODS = {
    "none": Named("no purification: the classifier alone"),
    "diffpure": Named("diffuse to t*, then reverse with any solver (Nie et al. 2022)", _diffpure),
    "adp": Named("noise, then steps along the score whose size adapts (Yoon et al. 2021)", _adp),
    "gdmp": Named("rounds of DDPM, each drawn towards the input (Wang et al. 2022)", _gdmp),
    "gnsp": Named(
        "eight rounds of ever more noise; use with a majority of 10 (Lee and Kim 2023)",
        lambda options, denoiser: gnsp(denoiser, steps=options.steps),
    ),
    "adbm": Named("five DDIM steps, for a denoiser of `lustral train adbm` (Li et al. 2025)", _adbm),
    "agdm": Named("DiffPure guided by a robust classifier; a reconstruction, as no code is public (Lin et al.)", _agdm),
}
"""Systems that ``--purification.method`` names; ``--purification.ssni`` wraps those that diffuse."""


def purifier(options: Purification, denoiser: Denoiser, about: weights.Card | None = None) -> Purifier | None:
    """The purifier that the options describe, around a denoiser; ``about`` is the denoiser's card, which SSNI needs."""
    if options.method not in METHODS:
        raise unknown("method", options.method, METHODS)
    make = METHODS[options.method].make
    if make is None:
        return None
    made = make(options, denoiser)
    if options.ssni is not None:
        if options.method == "adp":
            raise UserError("SSNI chooses how far to diffuse, and adp does not diffuse; choose another method.")
        rest = {"tau": options.tau, "bias": options.bias, "norm": norm(denoiser, options.norm)}
        made = ssni(made, reference(about, options.norm), law=options.ssni, **rest)
    return Pinned(made, TWIN) if options.fixed_noise else made


def _time(options: Purification, default: float) -> float:
    return default if options.t_star is None else options.t_star


def _rounds(options: Purification, default: int) -> int:
    return default if options.rounds is None else options.rounds


def reference(about: weights.Card | None, kind: str = "eps") -> Reference:
    """The score norms of clean images that a denoiser's card holds."""
    found = {name: (about.measured if about else {}).get(NORMS[kind] + name) for name in Reference._fields}
    if None in found.values():
        name = about.name if about else "the denoiser"
        raise UserError(
            f"SSNI needs score norms of clean images, which the card of {name} does not hold; "
            "run `lustral reference` on its .safetensors file."
        )
    return Reference(**found)


def norm(denoiser: Denoiser, kind: str = "eps") -> ScoreNorm:
    """A score norm that SSNI goes by: at the published times, as far as the denoiser knows them, or at the last."""
    times = published_times()
    if kind == "single":
        return ScoreNorm(denoiser, VP(), times[-1:], noisy=False)
    return ScoreNorm(denoiser, VP(), known_times(times, denoiser, VP()))


@torch.no_grad()
def measure(denoiser: Denoiser, kind: str, x: torch.Tensor, rng: Rng, batch: int = 64) -> Reference:
    """The score norms of clean images x."""
    parts = [norm(denoiser, kind)(x[i : i + batch], rng[i : i + batch]) for i in range(0, len(x), batch)]
    return Reference.of(torch.cat(parts))
