"""``lustral controls``: does the evaluation catch what it must? Cheats and broken attacks, on real digits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from ..core.errors import UserError, unknown
from ..core.noise import Key
from ..core.threat import Linf, Threat
from ..defence import Defence, defend
from ..evaluate import cheats, controls, sizes, suites
from ..evaluate.findings import findings
from ..evaluate.findings.base import Evidence
from ..evaluate.protocol import Data, Job, Stage, System
from ..purifiers.presets import diffpure
from . import build, results, runner, weights
from .device import on
from .images import data as datasets
from .options import Resources
from .scratch import unkept

EPS = 3 / 16


class Caught(NamedTuple):
    """A control, the findings of which at least one must be red, those that are, and its accuracy in the worst case."""

    name: str
    expected: tuple[str, ...]
    red: tuple[str, ...]
    worst: float

    @property
    def holds(self) -> bool:
        """A sound control has no red finding; the others have an expected one."""
        return bool(set(self.expected) & set(self.red)) if self.expected else not self.red


class Parts(NamedTuple):
    """What controls are made of: a classifier, a denoiser, the images and the threat that they will meet."""

    net: nn.Module
    denoiser: nn.Module
    data: Data
    threat: Threat


def _same(stage: Stage, threat: Threat) -> Stage:
    return stage


def _overstepping(stage: Stage, threat: Threat) -> Stage:
    return Stage(stage.name, controls.Overstepping(threat), stage.draws) if stage.name == "apgd-margin" else stage


@dataclass(frozen=True)
class Control:
    """A system, what is done to its stages, and the findings one of which must be red; none where it is sound."""

    make: Callable[[Parts], Defence]
    expected: tuple[str, ...] = ()
    spoil: Callable[[Stage, Threat], Stage] = _same
    random: bool = False


FOLLOWED = ("followed-gradient", "finite-difference")
CONTROLS = {
    "sound": Control(lambda p: Defence(p.net)),
    "sound, DiffPure": Control(lambda p: defend(p.net, diffpure(p.denoiser, 0.1, "ddim", steps=3)), random=True),
    # It finds no address to read, so it is what an honest system with as much noise is.
    "reads its address": Control(lambda p: defend(p.net, cheats.reads_address), random=True),
    "shattered gradients": Control(
        lambda p: Defence(p.net, controls.shattered()), ("gradient-exists", "finite-difference")
    ),
    "rippled gradients": Control(
        lambda p: Defence(p.net, controls.rippled()), ("bpda-over-exact", "transfer", "black-box", *FOLLOWED)
    ),
    "garbage in float32": Control(lambda p: defend(p.net, cheats.bent(cheats.garbage32)), FOLLOWED),
    "turned in float32": Control(lambda p: defend(p.net, cheats.bent(cheats.reversed32)), FOLLOWED),
    "garbage in a closure": Control(lambda p: Defence(_behind(cheats.bent(cheats.garbage32), p.net)), FOLLOWED),
    "garbage after 20 calls": Control(lambda p: defend(p.net, cheats.bent(cheats.After(20))), FOLLOWED),
    "steps and a leak inside eps": Control(
        lambda p: Defence(cheats.leaking(p.net, p.data.x, p.threat.eps)), ("path-integral", *FOLLOWED)
    ),
    "false beyond eps": Control(
        lambda p: defend(p.net, cheats.bent(cheats.beyond(p.data.x, p.threat.eps))), ("path-integral", *FOLLOWED)
    ),
    "a part of the gradient": Control(
        lambda p: defend(p.net, cheats.bent(cheats.partly(p.data.x, p.threat.eps))), ("followed-gradient",)
    ),
    "counts its calls": Control(lambda p: defend(p.net, cheats.Counting(20)), ("replayable", "asked-alike")),
    "knows who calls": Control(lambda p: defend(p.net, cheats.knows_caller), ("asked-alike",), random=True),
    "reversed attack": Control(
        lambda p: Defence(p.net),
        ("unbounded", "random-noise", "null-control"),
        lambda stage, _: controls.sabotaged(stage),
    ),
    "overstepping attack": Control(lambda p: Defence(p.net), ("threat-kept",), _overstepping),
}


def _behind(front: Callable, net: nn.Module) -> Callable:
    """A classifier that hides both in a closure."""
    return lambda x: net(front(x))


def plan(parts: Parts, suite: str) -> list[Job]:
    """Every control as a system under a suite."""
    systems = [System(name, control.make(parts), random=control.random) for name, control in CONTROLS.items()]
    jobs = suites.jobs(suite, systems, parts.threat, len(parts.data.ids))
    return [replace(job, stage=CONTROLS[job.system.name].spoil(job.stage, parts.threat)) for job in jobs]


def main(suite: str, images: int, resources: Resources) -> list[Caught]:
    """Runs the controls in a scratch folder and says what caught each."""
    build.prepare(resources)
    if images < 1:
        raise UserError(f"images must be at least 1, not {images}.")
    if suite not in sizes.SIZES:
        raise unknown("suite", suite, sizes.SIZES)
    data, threat, key = datasets.load("digits", "test")[:images], Linf(EPS), Key(0)
    nets = (
        on(resources.device, weights.load(name, kind)[0])
        for name, kind in (("digits-cnn", "classifier"), ("digits-unet", "denoiser"))
    )
    jobs = plan(Parts(*nets, data, threat), suite)
    systems = list({job.system.name: job.system for job in jobs}.values())
    with unkept() as folder, runner.open_ledger(jobs, data, key, folder) as ledger:
        runner.certify_all(systems, data, threat, key, ledger, resources, suite)
        runner.execute(jobs, data, key, ledger, resources)
        run = results.Run(ledger, jobs)
        return [_caught(results.evidence(run, name), name) for name in run.systems]


def _caught(evidence: Evidence, name: str) -> Caught:
    red = tuple(finding.name for finding in findings(evidence) if finding.level == "red")
    return Caught(name, CONTROLS[name].expected, red, evidence.stages["worst"].accuracy)
