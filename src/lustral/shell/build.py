"""From options to objects: defences, attacks, stages."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..attacks.losses import LOSSES
from ..attacks.search import Attack
from ..core import vote as votes
from ..core.errors import UserError, unknown
from ..core.purifier import Purifier
from ..core.threat import L1, L2, Linf, Threat
from ..defence import Defence
from ..denoisers.base import FixedBatch, Meter
from ..evaluate.protocol import Stage, System
from . import device as devices
from . import standard, weights
from .options import Classification, Precision, Purification, Resources, Search, ThreatModel
from .stages import ATTACKS, PURIFIED, Making
from .systems import Networks, denoisers_precision, purifier

STAGES = tuple(ATTACKS)
VOTES = {"mean-softmax": votes.MeanSoftmax, "mean-logits": votes.MeanLogits, "majority": votes.Majority}


def vote(options: Classification) -> votes.Vote:
    """The vote by its name."""
    if options.vote == "single":
        return votes.Single(options.draws)
    if options.vote not in VOTES:
        raise unknown("vote", options.vote, ["single", *VOTES])
    return VOTES[options.vote](options.draws)


def system(
    name: str,
    how: Purification,
    judge: Classification,
    micro_batch: int | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
) -> System:
    """A named defence with a meter; with ``micro_batch``, its networks see exactly that many rows at a time."""
    if micro_batch is not None and micro_batch < 1:
        raise UserError(f"micro_batch must be at least 1, not {micro_batch}.")

    def fix(net: Callable[..., Tensor], precision: Precision = precision) -> Callable[..., Tensor]:
        there = devices.on(device, net, precision)
        return FixedBatch(there, micro_batch) if micro_batch else there

    named = standard.named("classifier", judge.classifier, "--classification.classifier")
    classifier, about = weights.load(named, "classifier")
    meter = Meter()
    clean = cheaper = None
    if how.method != "none":
        needed = standard.named("denoiser", how.denoiser, "--purification.denoiser")
        denoiser, other = weights.load(needed, "denoiser")
        if about.image[0] != other.image[0]:
            raise UserError(
                f"{named} takes {about.image[0]}-channel images, {needed} {other.image[0]}; "
                "choose a pair for the same images."
            )
        watched = meter.watch(fix(denoiser, denoisers_precision(how.method, precision)))
        given = Networks(watched, other, fix, meter.watch)
        clean, cheaper = purifier(how, given), surrogate(how, given)
    defence = Defence(fix(classifier) if clean is not None else meter.watch(fix(classifier)), clean, vote(judge))
    return System(name, defence, meter, random=clean is not None and not how.fixed_noise, surrogate=cheaper)


def surrogate(how: Purification, given: Networks) -> Purifier | None:
    """The same purifier with half the steps, where it is one with steps to halve."""
    if how.method in ("none", "adp") or how.solver in ("one-shot", "langevin") or how.fixed_noise:
        return None
    if how.dt is not None:
        return purifier(replace(how, dt=2 * how.dt), given)
    steps = {"diffpure": 10, "agdm": 10, "gdmp": 36, "adbm": 5}.get(how.method, 1) if how.steps is None else how.steps
    return purifier(replace(how, steps=steps // 2), given) if steps > 1 else None


def threat(options: ThreatModel) -> Threat:
    """The threat by its norm."""
    norms = {"linf": Linf, "l2": L2, "l1": L1}
    if options.norm not in norms:
        raise unknown("norm", options.norm, norms)
    if options.eps is None:
        raise UserError(f"An attack needs its eps ({standard.KNOWN}).")
    return norms[options.norm](options.eps)


def attack(name: str, system: System, against: Threat, search: Search, resources: Resources) -> Attack | None:
    """The attack of a stage by its name."""
    if name not in STAGES:
        raise unknown("stage", name, STAGES)
    if search.loss not in LOSSES:
        raise unknown("loss", search.loss, LOSSES)
    if system.defence.purifier is None and name in PURIFIED:
        raise UserError(f"Stage {name!r} attacks a purifier, and there is none; choose a method or another stage.")
    return ATTACKS[name](Making(system, against, search, int(resources.budget * 2**30)))


def stage(
    name: str, system: System, against: Threat, search: Search, resources: Resources, draws: int, called: str = ""
) -> Stage:
    """A stage of the protocol by its name, ``called`` something else where a plan has several of a kind."""
    knowledge = {"fixed": "known", "known init": "init", "known step": "step"}.get(name, "fresh")
    return Stage(called or name, attack(name, system, against, search, resources), draws, knowledge)


def prepare(resources: Resources) -> None:
    """Sets the number of threads, and checks the device."""
    if resources.batch < 1 or resources.budget < 0 or (resources.threads is not None and resources.threads < 1):
        raise UserError("batch and threads must be at least 1, and the memory budget at least 0.")
    devices.check(resources.device)
    if resources.threads:
        torch.set_num_threads(resources.threads)
