"""From options to objects: defences, attacks, stages."""

import torch

from ..attacks import gradients
from ..attacks.losses import LOSSES
from ..attacks.pgd import PGD, Attack, RandomSign
from ..core import vote as votes
from ..core.errors import UserError, unknown
from ..core.purifier import Purifier
from ..core.threat import L1, L2, Linf, Threat
from ..defence import Defence
from ..denoisers.base import FixedBatch, Meter
from ..evaluate.protocol import Stage, System
from ..purifiers.presets import adp, adp_gated, diffpure
from . import weights
from .options import Classification, Purification, Resources, Search, ThreatModel

VOTES = {"mean-softmax": votes.MeanSoftmax, "mean-logits": votes.MeanLogits, "majority": votes.Majority}
STAGES = ("clean", "null", "blind", "bpda", "exact", "fixed")


def vote(options: Classification) -> votes.Vote:
    """The vote by its name."""
    if options.vote == "single":
        return votes.Single(options.draws)
    if options.vote not in VOTES:
        raise unknown("vote", options.vote, ["single", *VOTES])
    return VOTES[options.vote](options.draws)


def purifier(options: Purification, denoiser) -> Purifier | None:
    """The purifier that the options describe, around a denoiser."""
    if options.method == "none":
        return None
    if options.method == "diffpure":
        return diffpure(
            denoiser, options.t_star, options.solver, steps=options.steps, rounds=options.rounds, clamp=options.clamp
        )
    if options.method != "adp":
        raise unknown("method", options.method, ("none", "diffpure", "adp"))
    rest = {"steps": 10 if options.steps is None else options.steps, "published": options.published}
    if options.gate is not None:
        return adp_gated(denoiser, options.sigma, threshold=options.gate, **rest)
    return adp(denoiser, options.sigma, **rest)


def system(name: str, how: Purification, judge: Classification, micro_batch: int | None = None) -> System:
    """A named defence with a meter; with ``micro_batch``, its networks see exactly that many rows at a time."""
    if micro_batch is not None and micro_batch < 1:
        raise UserError(f"micro_batch must be at least 1, not {micro_batch}.")
    fix = (lambda net: FixedBatch(net, micro_batch)) if micro_batch else (lambda net: net)
    classifier, about = weights.load(judge.classifier, "classifier")
    meter = Meter()
    clean = None
    if how.method != "none":
        denoiser, other = weights.load(how.denoiser, "denoiser")
        if about.image[0] != other.image[0]:
            raise UserError(
                f"{judge.classifier} takes {about.image[0]}-channel images, {how.denoiser} {other.image[0]}; "
                "choose a pair for the same images."
            )
        clean = purifier(how, meter.watch(fix(denoiser)))
    defence = Defence(fix(classifier) if clean is not None else meter.watch(fix(classifier)), clean, vote(judge))
    return System(name, defence, meter)


def threat(options: ThreatModel) -> Threat:
    """The threat by its norm."""
    norms = {"linf": Linf, "l2": L2, "l1": L1}
    if options.norm not in norms:
        raise unknown("norm", options.norm, norms)
    return norms[options.norm](options.eps)


def gradient(name: str, search: Search, resources: Resources) -> gradients.Gradient:
    """How a stage of that name differentiates the defence."""
    budget = int(resources.budget * 2**30)
    if name == "blind":
        return gradients.blind()
    if name == "bpda":
        return gradients.bpda(search.eot)
    return gradients.exact(1 if name == "fixed" else search.eot, budget)


def attack(name: str, against: Threat, search: Search, resources: Resources) -> Attack | None:
    """The attack of a stage: clean (none), null, blind, bpda, exact, or fixed (exact with the noise known)."""
    if name not in STAGES:
        raise unknown("stage", name, STAGES)
    if name == "clean":
        return None
    if search.loss not in LOSSES:
        raise unknown("loss", search.loss, LOSSES)
    loss = LOSSES[search.loss]
    if name == "null":
        return RandomSign(against, search.restarts * (search.steps + 1), search.eot, loss)
    return PGD(
        against,
        gradient(name, search, resources),
        loss,
        search.steps,
        search.step_size,
        search.momentum,
        restarts=search.restarts,
    )


def stage(name: str, against: Threat, search: Search, resources: Resources, draws: int, called: str = "") -> Stage:
    """A stage of the protocol by its name, ``called`` something else where a plan has several of a kind."""
    knowledge = "known" if name == "fixed" else "fresh"
    return Stage(called or name, attack(name, against, search, resources), draws, knowledge)


def prepare(resources: Resources) -> None:
    """Sets the number of threads."""
    if resources.batch < 1 or resources.budget < 0 or (resources.threads is not None and resources.threads < 1):
        raise UserError("batch and threads must be at least 1, and the memory budget at least 0.")
    if resources.threads:
        torch.set_num_threads(resources.threads)
