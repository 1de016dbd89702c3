"""Purification systems by name: what each is, in a line, and how options make it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import UserError, unknown
from ..core.noise import Key, Rng
from ..core.purifier import Purifier
from ..denoisers.base import Denoiser
from ..purifiers.compose import Pinned
from ..purifiers.guided import Part, Parts
from ..purifiers.presets import adbm, adp, adp_gated, agdm, diffpure, gdmp, gnsp, ssni
from ..purifiers.sample_specific import NORMS, Reference, score_norm
from . import names, standard, weights
from .options import Classification, Precision, Purification
from .terminal import progress

TWIN = Key(0, ("fixed noise",))
PREFIXES = dict(zip(NORMS, ("score_norm_", "single_score_norm_"), strict=True))
"""What the statistics of each score norm are called in a denoiser's card."""


Wrap = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


def _bare(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return fn


class Networks(NamedTuple):
    """What a system is made around: a denoiser, its card, and how other networks' batches are fixed and counted."""

    denoiser: Denoiser
    about: weights.Card | None = None
    fix: Wrap = _bare
    watch: Wrap = _bare


@dataclass(frozen=True)
class Named:
    """A system: how it is made (None: images stay as they are), and the options that it knows.

    ``precise``: its denoiser computes in float32 always.
    """

    make: Callable[[Purification, Networks], Purifier] | None = None
    knows: tuple[str, ...] = ()
    precise: bool = False


def _or(value, default):
    return default if value is None else value


def _grid(options: Purification) -> dict:
    """Ten steps where nothing is said, for solvers whose steps can be counted."""
    few = 10 if options.dt is None and options.solver not in ("one-shot", "langevin") else None
    return {"steps": _or(options.steps, few), "dt": options.dt}


def _adp(options: Purification, given: Networks) -> Purifier:
    rest = {"steps": _or(options.steps, 10), "published": options.published}
    if options.gate is not None:
        return adp_gated(given.denoiser, options.sigma, threshold=options.gate, **rest)
    return adp(given.denoiser, options.sigma, **rest)


def _diffpure(options: Purification, given: Networks) -> Purifier:
    rest = {"rounds": _or(options.rounds, 1), "clamp": options.clamp, **_grid(options)}
    return diffpure(given.denoiser, _or(options.t_star, 0.1), options.solver, **rest)


def _gdmp(options: Purification, given: Networks) -> Purifier:
    rest = {"likeness": options.likeness, "strength": options.strength, "steps": options.steps, "dt": options.dt}
    return gdmp(given.denoiser, _or(options.t_star, 0.036), rounds=_or(options.rounds, 4), **rest)


def _gnsp(options: Purification, given: Networks) -> Purifier:
    return gnsp(given.denoiser, steps=options.steps)


def _adbm(options: Purification, given: Networks) -> Purifier:
    return adbm(given.denoiser, _or(options.t_star, 0.1), steps=_or(options.steps, 5))


def _agdm(options: Purification, given: Networks) -> Purifier:
    name = standard.named("guide", options.guide, "--purification.guide")
    guide, about = weights.load(name, "classifier")
    if given.about is not None and about.image[0] != given.about.image[0]:
        raise UserError(
            f"{name} takes {about.image[0]}-channel images, {given.about.name} {given.about.image[0]}; "
            "choose a pair for the same images."
        )
    parts = Parts(given.watch(given.fix(Part(guide, "features"))), given.fix(Part(guide, "head")))
    rest = {"class_weight": options.class_weight, "latent_weight": options.latent_weight}
    rest |= {"rounds": _or(options.rounds, 1), "clamp": options.clamp, **_grid(options)}
    return agdm(given.denoiser, parts, _or(options.t_star, 0.1), options.solver, **rest)


DIFFUSION = ("t_star", "solver", "steps", "dt", "rounds", "clamp")
METHODS = {
    "none": Named(),
    "diffpure": Named(_diffpure, DIFFUSION),
    # The step's length is a difference over delta = 1e-3, which in bfloat16 is mostly rounding.
    "adp": Named(_adp, ("sigma", "steps", "published", "gate"), precise=True),
    "gdmp": Named(_gdmp, ("t_star", "steps", "dt", "rounds", "likeness", "strength")),
    "gnsp": Named(_gnsp, ("steps",)),
    "adbm": Named(_adbm, ("t_star", "steps")),
    "agdm": Named(_agdm, (*DIFFUSION, "guide", "class_weight", "latent_weight")),
}
"""Systems that ``--purification.method`` names; ``--purification.ssni`` wraps those that diffuse."""


def named(method: str) -> Named:
    """The system of that name."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return METHODS[method]


def purifier(options: Purification, given: Networks) -> Purifier | None:
    """The purifier that the options describe; SSNI needs the denoiser's card."""
    system = named(options.method)
    if options.method == "adp" and options.ssni is not None:
        raise UserError("SSNI chooses how far to diffuse, and adp does not diffuse; choose another method.")
    check(options)
    if system.make is None:
        return None
    made = system.make(options, given)
    if options.ssni is not None:
        rest = {"law": options.ssni, "tau": options.tau, "bias": options.bias, "published": options.published}
        made = ssni(made, reference(given.about, options.norm), norm=score_norm(given.denoiser, options.norm), **rest)
    return Pinned(made, TWIN) if options.fixed_noise else made


def denoisers_precision(method: str, precision: Precision) -> Precision:
    """The precision of a system's denoiser where that of its networks is asked to be ``precision``."""
    return "float32" if named(method).precise else precision


def in_words(options: Purification, judge: Classification) -> str:
    """A system in a line: what its method does, the options that it was given, and who judges the images."""
    system = named(options.method)
    asked = ("denoiser", *system.knows, "ssni", "fixed_noise") if system.make is not None else ()
    given = [(name, getattr(options, name)) for name in asked]
    parts = [name.replace("_", " ") if value is True else f"{name} {value}" for name, value in given if value]
    vote = "one decision" if judge.vote == "single" else f"{judge.vote} of {judge.draws}"
    said = [", ".join(parts)] if parts else []
    return "; ".join([names.METHODS[options.method], *said, f"classifier {judge.classifier}, {vote}"])


def check(options: Purification, chosen: Iterable[str] = ()) -> None:
    """Refuses options that the system does not know: they would look like a choice and be none.

    Those that are ``chosen``, or differ from the defaults.
    """
    knows = {"method", "denoiser", "fixed_noise", *METHODS[options.method].knows}
    if METHODS[options.method].make is not None:
        knows.add("ssni")
    if options.ssni is not None:
        knows |= {"norm", "bias", "published"} | ({"tau"} if options.ssni == "logistic" else set())
    plain = Purification()
    changed = [f.name for f in fields(options) if getattr(options, f.name) != getattr(plain, f.name)]
    for name in (*chosen, *changed):
        if name not in knows:
            wrapped = f" with SSNI's {options.ssni} law" if options.ssni else ""
            raise UserError(f"Method {options.method}{wrapped} has no {name} to choose; leave {name} out.")


def reference(about: weights.Card | None, kind: str = "eps") -> Reference:
    """The score norms of clean images that a denoiser's card holds."""
    if kind not in PREFIXES:
        raise unknown("norm", kind, PREFIXES)
    numbers = ("mean", "std", "low", "high", "images")
    found = {name: (about.measured if about else {}).get(PREFIXES[kind] + name) for name in numbers}
    if None in found.values():
        name = about.name if about else "the denoiser"
        raise UserError(
            f"SSNI needs score norms of clean images, which the card of {name} does not hold; "
            "run `lustral reference` on its .safetensors file."
        )
    return Reference(**found, kind=kind)


Statistic = Callable[[Tensor, Rng], Tensor]


@torch.no_grad()
def by_parts(statistic: Statistic, x: Tensor, rng: Rng, batch: int = 64) -> Tensor:
    """One number [n] per image, with a progress display."""
    parts = []
    with progress() as bar:
        task = bar.add_task("score norms", total=len(x))
        for i in range(0, len(x), batch):
            parts.append(statistic(x[i : i + batch], rng[i : i + batch]))
            bar.advance(task, len(parts[-1]))
    return torch.cat(parts)


def measure(denoiser: Denoiser, kind: str, x: Tensor, rng: Rng) -> Reference:
    """The score norms of clean images x."""
    return Reference.of(by_parts(score_norm(denoiser, kind), x, rng), kind)
