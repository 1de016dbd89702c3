"""``lustral controls``: does the evaluation catch what it must? Masked gradients and broken attacks, on real digits."""

from dataclasses import replace
from typing import NamedTuple

from ..core.errors import UserError
from ..core.noise import Key
from ..core.threat import Linf, Threat
from ..defence import Defence
from ..evaluate import controls, suites
from ..evaluate.findings import findings
from ..evaluate.protocol import Job, Stage, System
from . import build, results, runner, weights
from .device import on
from .images import data as datasets
from .options import Resources
from .scratch import unkept

EPS = 3 / 16


class Caught(NamedTuple):
    """A control, the findings of which at least one must be red, and those that are."""

    name: str
    expected: tuple[str, ...]
    red: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """A sound control has no red finding; the others have an expected one."""
        return bool(set(self.expected) & set(self.red)) if self.expected else not self.red


EXPECTED = {
    "sound": (),
    "shattered gradients": ("gradient-exists", "finite-difference"),
    "rippled gradients": ("bpda-over-exact", "transfer", "black-box", "binarisation"),
    "reversed attack": ("unbounded", "random-noise", "null-control"),
    "overstepping attack": ("threat-kept",),
}


def plan(threat: Threat, images: int, device: str = "cpu") -> list[Job]:
    """The controls as systems under the quick suite; the first one is sound."""
    classifier = on(device, weights.load("digits-cnn", "classifier")[0])
    purifiers = {"shattered gradients": controls.shattered(), "rippled gradients": controls.rippled()}
    systems = [System(name, Defence(classifier, purifiers.get(name)), random=False) for name in EXPECTED]
    jobs = suites.jobs("quick", systems, threat, images)
    return [_spoilt(job, threat) for job in jobs]


def _spoilt(job: Job, threat: Threat) -> Job:
    stage = job.stage
    if job.system.name == "reversed attack":
        stage = controls.sabotaged(stage)
    elif job.system.name == "overstepping attack" and stage.name == "apgd-margin":
        stage = Stage(stage.name, controls.Overstepping(threat), stage.draws)
    return replace(job, stage=stage)


def main(images: int, resources: Resources) -> list[Caught]:
    """Runs the controls in a scratch folder and says what caught each."""
    build.prepare(resources)
    if images < 1:
        raise UserError(f"images must be at least 1, not {images}.")
    data, threat, key = datasets.load("digits", "test")[:images], Linf(EPS), Key(0)
    jobs = plan(threat, len(data.ids), resources.device)
    systems = list({job.system.name: job.system for job in jobs}.values())
    with unkept() as folder, runner.open_ledger(jobs, data, key, folder) as ledger:
        runner.certify_all(systems, data, threat, key, ledger, resources, "standard")
        runner.execute(jobs, data, key, ledger, resources)
        run = results.Run(ledger, jobs)
        return [Caught(name, EXPECTED[name], _red(run, name)) for name in run.systems]


def _red(run: results.Run, name: str) -> tuple[str, ...]:
    return tuple(finding.name for finding in findings(results.evidence(run, name)) if finding.level == "red")
