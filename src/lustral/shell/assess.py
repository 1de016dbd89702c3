"""One call for a researcher: a defence of one's own, any data, a suite; results as a dict, and a page if wanted."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import check
from ..core.errors import UserError, unknown
from ..core.networks import modules_in
from ..core.noise import Key
from ..core.threat import Threat
from ..defence import Defence
from ..denoisers.base import Meter
from ..evaluate import sizes, suites
from ..evaluate.certificate import draws_noise
from ..evaluate.protocol import Data, Job, System, shuffled
from . import build, folder, given, labels, origins, plan, recorded, results, review, runner, views
from .assessment import Assessment
from .ledger import Ledger
from .options import Resources
from .scratch import unkept


def assess(
    defences: Defence | dict[str, Defence],
    data: Any,
    threat: Threat,
    suite: str = "quick",
    *,
    attacks: Mapping[str, Any] | None = None,
    images: int | None = None,
    classes: Sequence[str] | None = None,
    out: Path | str | None = None,
    seed: int = 0,
    allow_red: bool = False,
    resources: Resources | None = None,
) -> Assessment:
    """Evaluates defences by a suite and returns its results (rows, findings, details; see docs/suites.md).

    ``defences`` may be several by name, which are compared by paired tests. ``data`` is ``lustral.data(...)``, a pair
    (images, labels) of tensors or arrays, a torch Dataset or a DataLoader; its first ``images`` are used, and
    ``classes`` names the labels where it does not. ``attacks`` are further ones by name: an attack with ``threat`` and
    ``run``, an attack of torchattacks (whose model is replaced), or a function (model, x, y) → images; all images face
    them, and the worst case chooses from those of this threat too. ``out`` is the folder of the run, which is resumed
    where it stopped and gets ledger.sqlite, results.json and report.html; without it nothing is kept.
    """
    resources = resources or Resources()
    taken = _taken(data, images, classes, defences)
    run = prepare(defences, taken, threat, suite, attacks or {}, Key(seed), resources)
    data = run.data
    with unkept() as elsewhere, ExitStack() as watching:
        for system in run.systems:
            _count(system, watching)
        with runner.open_ledger(
            run.jobs, data, run.key, Path(out or elsewhere), {"suite": sizes.title(suite)}
        ) as ledger:
            runner.certify_all(run.systems, data, threat, run.key, ledger, resources, suite)
            runner.execute(run.jobs, data, run.key, ledger, resources)
            ledger.note(command="lustral.assess", allow_red=allow_red, classes=list(labels.spoken(data.classes)))
            found, shown = fold(run, ledger), views.pictures(ledger, run.jobs, data, run.key)
    found = folder.hold_back(found, allow_red)
    if out is not None:
        folder.publish(Path(out), found, shown)
    return Assessment(found, None if out is None else Path(out))


def verify(
    run: Path | str,
    defences: Defence | dict[str, Defence] | None = None,
    *,
    data: Any = None,
    attacks: Mapping[str, Any] | None = None,
    images: int = 4,
    resources: Resources | None = None,
) -> str:
    """Runs a random handful of a run's images again, and says how near its ledger is; an error where it is not.

    A run of ``assess`` needs its ``defences`` (and ``attacks``) as they were, which its folder does not hold. Its
    images are those of the ledger, or ``data``, which must be given where ids were not in ascending order.
    """
    place, resources = Path(run), resources or Resources()
    if defences is None:
        return review.verify(place, images, resources)
    with Ledger(place / "ledger.sqlite") as ledger:
        spec, threat = ledger.spec(), recorded.threat(ledger)
        chosen = recorded.clean(ledger) if data is None else _taken(data, None, None, defences)
    suite = sizes.named(spec.get("suite")) or ""
    again = prepare(defences, chosen, threat, suite, attacks or {}, Key(spec["key"]["seed"]), resources)

    with ExitStack() as watching:
        for system in again.systems:
            _count(system, watching)
        return review.hold(place, again, {"suite": sizes.title(suite)}, partial(fold, again), images, resources)


def _taken(
    data: Any, images: int | None, classes: Sequence[str] | None, defences: Defence | dict[str, Defence]
) -> Data:
    """What was given as images; labels whose names come with the data are those of classifiers that know theirs."""
    found = given.data(data, images, classes)
    named = defences.values() if isinstance(defences, dict) else [defences]
    return found if classes else labels.meet_loaded(found, [getattr(one, "classifier", None) for one in named])


class Run(NamedTuple):
    """What an assessment's arguments mean."""

    jobs: list[Job]
    systems: list[System]
    data: Data
    threat: Threat
    key: Key
    suite: str


def prepare(
    defences: Defence | dict[str, Defence],
    data: Data,
    threat: Threat,
    suite: str,
    attacks: Mapping[str, Any],
    key: Key,
    resources: Resources,
) -> Run:
    """The jobs of a suite, and of further attacks, for these defences."""
    build.prepare(resources)
    if resources.device != "cpu":
        raise UserError("assess computes where your networks do: lustral.shell.device.on('cuda', net) moves one.")
    named = defences if isinstance(defences, dict) else {"defence": defences}
    _check(named, data, threat)
    data = data._replace(x=data.x.float())
    systems = [System(name, defence, Meter()) for name, defence in named.items()]
    few = data[: plan.PROBED]
    systems = [
        replace(system, random=draws_noise(system.defence, few, threat), origin=origins.of(system.defence, data.x))
        for system in systems
    ]
    if suite not in sizes.SIZES:
        raise unknown("suite", suite, sizes.SIZES)
    own = given.attacks(attacks, threat, sizes.SIZES[suite].eot if any(s.random for s in systems) else 1)
    budget = int(runner.each(resources).budget * 2**30)
    jobs = suites.jobs(suite, systems, threat, len(data.ids), budget, own)
    title = " and ".join([sizes.title(suite), *own])
    return Run(jobs, systems, data, threat, key, title)


def _check(defences: dict[str, Defence], data: Data, threat: Threat) -> None:
    """Says in one sentence what is not as it must be."""
    if not (hasattr(threat, "project") and hasattr(threat, "eps")):
        raise UserError(f"A threat is lustral.Linf(8/255), lustral.L2(0.5) or the like, not {threat!r}.")
    for name, defence in defences.items():
        plan.check_name(name)
        if not isinstance(defence, Defence):
            raise UserError(
                f"{name} must be made by lustral.defend(classifier, purifier), not {type(defence).__name__}."
            )
    x, y = check.images(data.x), data.y
    if not len(x) or len(data.ids) != len(x) or len(set(data.ids.tolist())) != len(x):
        raise UserError("Data needs at least one image, and for each an id of its own.")
    check.labels(y, len(x))
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
        if isinstance(net, torch.jit.ScriptModule):  # which takes no hooks
            continue
        hook = net.register_forward_hook(note)
        watching.callback(hook.remove)


def _tensors(out: object) -> list[Tensor]:
    """The tensors of a network's output, which may be a tuple, a list or a mapping of them."""
    if isinstance(out, Tensor):
        return [out]
    out = vars(out) if is_dataclass(out) else out
    parts = out.values() if isinstance(out, Mapping) else out if isinstance(out, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def fold(run: Run, ledger: Ledger) -> dict:
    """What the ledger of a run says, before anything is held back."""
    found = results.results(
        ledger,
        run.jobs,
        order=shuffled(run.data, run.key),
        title=", ".join(dict.fromkeys(job.system.name for job in run.jobs)),
        suite=run.suite,
        seed=run.key.seed,
        data={
            "name": "given",
            "split": "given",
            "images": len(run.data.ids),
            "sha256": ledger.spec()["data"]["x"]["sha256"],
            "classes": ledger.facts().get("classes", []),
        },
        threat={"norm": type(run.threat).__name__.lower(), "eps": run.threat.eps, "why": ""},
    )
    return found | {"seconds": round(sum(row["seconds"] for row in found["rows"]), 1)}
