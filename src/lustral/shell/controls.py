"""``lustral controls``: does the evaluation catch what it must? Cheats, broken attacks and honest systems on digits."""

from dataclasses import replace
from typing import NamedTuple

from ..core.errors import UserError, unknown
from ..core.noise import Key
from ..core.threat import Linf
from ..evaluate import sizes, suites
from ..evaluate.findings import findings
from ..evaluate.findings.base import Evidence
from ..evaluate.protocol import Job, System
from . import build, results, runner, weights
from .cheating import CHEATS, MORE_CHEATS
from .control import Control, Parts
from .device import on
from .honest import HONEST, MORE_HONEST
from .images import data as datasets
from .options import Resources
from .scratch import unkept

EPS = 3 / 16
CONTROLS: dict[str, Control] = {**HONEST, **CHEATS}
THOROUGH: dict[str, Control] = {**CONTROLS, **MORE_CHEATS, **MORE_HONEST}


class Caught(NamedTuple):
    """A control, the findings of which at least one must be red, those that are, and its accuracy in the worst case.

    ``holds`` says whether that is as it must be; a cheat that the suite is known not to see is ``unseen``.
    """

    name: str
    expected: tuple[str, ...]
    red: tuple[str, ...]
    worst: float
    holds: bool
    unseen: bool = False


def plan(parts: Parts, suite: str, chosen: dict[str, Control] = CONTROLS) -> list[Job]:
    """Every control as a system under a suite."""
    systems = [System(name, control.make(parts), random=control.random) for name, control in chosen.items()]
    jobs = suites.jobs(suite, systems, parts.threat, len(parts.data.ids))
    return [replace(job, stage=chosen[job.system.name].spoil(job.stage, parts.threat)) for job in jobs]


def main(suite: str, images: int, resources: Resources, chosen: dict[str, Control] = CONTROLS) -> list[Caught]:
    """Runs controls in a scratch folder and says what caught each."""
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
    jobs = plan(Parts(*nets, data, threat, resources.device), suite, chosen)
    systems = list({job.system.name: job.system for job in jobs}.values())
    with unkept() as folder, runner.open_ledger(jobs, data, key, folder) as ledger:
        runner.certify_all(systems, data, threat, key, ledger, resources, suite)
        runner.execute(jobs, data, key, ledger, resources)
        run = results.Run(ledger, jobs)
        return [caught(name, chosen[name], suite, results.evidence(run, name)) for name in run.systems]


def caught(name: str, control: Control, suite: str, evidence: Evidence) -> Caught:
    """What the findings of a run say of a control."""
    red = tuple(finding.name for finding in findings(evidence) if finding.level == "red")
    told = control.holds(suite, red), suite in control.unseen
    return Caught(name, control.expected, red, evidence.stages["worst"].accuracy, *told)
