"""One call for a researcher: a defence of one's own, any data, a suite; results as a dict, and a page if wanted."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import is_dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..core import check
from ..core.errors import UserError
from ..core.networks import modules_in
from ..core.noise import Key
from ..core.threat import Threat
from ..defence import Defence
from ..denoisers.base import Meter
from ..evaluate import sizes, suites
from ..evaluate.certificate import draws_noise
from ..evaluate.protocol import Data, System, shuffled
from . import build, folder, plan, results, runner, views
from .ledger import Ledger
from .options import Resources


def assess(
    defences: Defence | dict[str, Defence],
    data: Data,
    threat: Threat,
    suite: str = "quick",
    *,
    out: Path | str | None = None,
    seed: int = 0,
    allow_red: bool = False,
    resources: Resources | None = None,
) -> dict:
    """Evaluates defences by a suite and returns its results (rows, findings, details; see docs/suites.md).

    ``defences`` may be several by name, which are compared by paired tests. ``out`` is the folder of the run, which is
    resumed where it stopped and gets ledger.sqlite, results.json and report.html; without it nothing is kept.
    """
    resources = resources or Resources()
    build.prepare(resources)
    if resources.device != "cpu":
        raise UserError("assess computes where your networks do: lustral.shell.device.on('cuda', net) moves one.")
    named = defences if isinstance(defences, dict) else {"defence": defences}
    _check(named, data)
    data = data._replace(x=data.x.float())
    systems = [System(name, defence, Meter()) for name, defence in named.items()]
    few = data[: plan.PROBED]
    systems = [replace(system, random=draws_noise(system.defence, few, threat)) for system in systems]
    jobs = suites.jobs(suite, systems, threat, len(data.ids), int(runner.each(resources).budget * 2**30))
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as watching:
        for system in systems:
            _count(system, watching)
        place, key = Path(out or scratch), Key(seed)
        with runner.open_ledger(jobs, data, key, place, {"suite": sizes.title(suite)}) as ledger:
            runner.certify_all(systems, data, threat, key, ledger, resources, suite)
            runner.execute(jobs, data, key, ledger, resources)
            found, shown = _fold(ledger, jobs, data, key, threat, sizes.title(suite))
    found = folder.hold_back(found, allow_red)
    if out is not None:
        folder.publish(Path(out), found, shown)
    return found


def _check(defences: dict[str, Defence], data: Data) -> None:
    """Says in one sentence what is not as it must be."""
    for name, defence in defences.items():
        plan.check_name(name)
        if not isinstance(defence, Defence):
            raise UserError(
                f"{name} must be made by lustral.defend(classifier, purifier), not {type(defence).__name__}."
            )
    x, y = check.images(data.x), data.y
    if not len(x) or len(data.ids) != len(x) or len(set(data.ids.tolist())) != len(x):
        raise UserError("Data needs at least one image, and for each an id of its own.")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != (len(x),):
        raise UserError("Labels must be a torch tensor of int64, one for each image.")
    for name, defence in defences.items():
        classes = defence.logits(x[:1], 0).shape[1]
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= classes:
            raise UserError(f"{name} knows labels 0 to {classes - 1}, but the data has {low} to {high}.")


def _count(system: System, watching: ExitStack) -> None:
    """Lets the system's meter count the rows of its networks; functions that hold theirs in a closure are not seen."""
    defence, meter = system.defence, system.meter

    def note(_: nn.Module, __: tuple, out: object) -> None:
        for first in _tensors(out)[:1]:
            meter.note(first)

    for net in modules_in(defence.classifier if defence.purifier is None else defence.purifier):
        hook = net.register_forward_hook(note)
        watching.callback(hook.remove)


def _tensors(out: object) -> list[Tensor]:
    """The tensors of a network's output, which may be a tuple, a list or a mapping of them."""
    if isinstance(out, Tensor):
        return [out]
    out = vars(out) if is_dataclass(out) else out
    parts = out.values() if isinstance(out, Mapping) else out if isinstance(out, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _fold(
    ledger: Ledger, jobs: Sequence, data: Data, key: Key, threat: Threat, suite: str
) -> tuple[dict, dict[str, np.ndarray]]:
    found = results.results(
        ledger,
        jobs,
        order=shuffled(data, key),
        title=", ".join(dict.fromkeys(job.system.name for job in jobs)),
        command="lustral.assess",
        suite=suite,
        seed=key.seed,
        data={
            "name": "given",
            "split": "given",
            "images": len(data.ids),
            "sha256": ledger.spec()["data"]["x"]["sha256"],
        },
        threat={"norm": type(threat).__name__.lower(), "eps": threat.eps, "why": ""},
    )
    found["seconds"] = round(sum(row["seconds"] for row in found["rows"]), 1)
    return found, views.pictures(ledger, jobs, data, key)
