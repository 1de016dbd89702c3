"""A planned evaluation: options that say all of it, the jobs they mean, and how it is run, kept and checked again."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core.errors import UserError
from ..core.noise import Key
from ..core.spec import differences
from ..core.threat import Threat
from ..evaluate import sizes, suites
from ..evaluate.certificate import draws_noise
from ..evaluate.protocol import Data, Job, System, describe, pending, shuffled
from ..training.batches import as_floats
from . import build, early, folder, growth, labels, names, origins, results, runner, standard, stored, views, weights
from .device import OnDevice
from .files import write_text
from .images import data as datasets
from .images.corruptions import corrupt
from .ledger import Ledger
from .options import Classification, Entry, Evaluation, Purification, Resources, Search, ThreatModel
from .systems import in_words


class Plan(NamedTuple):
    """What an evaluation's options mean."""

    options: Evaluation
    jobs: list[Job]
    systems: list[System]
    data: Data
    threat: Threat
    key: Key
    classes: tuple[str, ...] = ()
    """The names of the labels, where they have some."""


def make(options: Evaluation, resources: Resources) -> Plan:
    """The objects that the options describe, checked against the data."""
    if options.images < 1:
        raise UserError(f"images must be at least 1, not {options.images}.")
    names.evaluation(options)
    source = datasets.parts(options.data)
    options = standard.evaluation(options)
    source = labels.meet(source, options.data, [judge.classifier for _, _, judge in named(options)])
    data = source.pick(options.split, options.data)[: options.images]
    plain = data.x
    data = corrupt(data, options.corruption) if options.corruption else data
    data = data._replace(x=as_floats(data.x))
    threat, systems = build.threat(options.threat), []
    for name, how, judge in named(options):
        system = build.system(name, how, judge, options.micro_batch, resources.device, options.precision)
        check(data, judge.classifier, system)
        random = draws_noise(system.defence, data[:PROBED], threat)
        systems.append(replace(system, random=random, origin=origins.of(system.defence, plain, options.data)))
    say_far([how for _, how, _ in named(options)], data)
    jobs = _jobs(options, systems, threat, len(data.ids), runner.each(resources))
    return Plan(options, jobs, systems, data, threat, Key(options.seed), labels.spoken(source.classes))


def check_name(name: object) -> None:
    """Refuses a system's name that is no text."""
    if not isinstance(name, str):
        raise UserError(f"A system's name is a text, not the {type(name).__name__} {name}; put it in quotes.")


def named(options: Evaluation) -> Iterator[tuple[str, Purification, Classification]]:
    """Every system's name and parts, those of the whole evaluation where its entry has none."""
    if not options.systems:
        method = options.purification.method
        yield method if method != "none" else "undefended", options.purification, options.classification
    for name, entry in (options.systems or {}).items():
        check_name(name)
        yield name, entry.purification or options.purification, entry.classification or options.classification


def _jobs(options: Evaluation, systems: list[System], threat: Threat, images: int, resources: Resources) -> list[Job]:
    if options.suite is not None:
        return suites.jobs(options.suite, systems, threat, images, int(resources.budget * 2**30))
    stages = [stage or "null" for stage in options.stages]  # YAML reads null as nothing where it is not quoted
    return [
        Job(system, build.stage(stage, system, threat, options.search, resources, options.draws), images)
        for system in systems
        for stage in stages
    ]


def check(data: Data, classifier: str, system: System) -> None:
    """Refuses data that the classifier does not know."""
    about = weights.card(weights.find(classifier))
    if list(data.x.shape[1:]) != about.image:
        raise UserError(f"{about.name} takes images of shape {about.image}, but the data has {list(data.x.shape[1:])}.")
    with torch.no_grad():
        classes = system.defence.classify(data.x[:1]).shape[1]
    if int(data.y.max()) >= classes:
        raise UserError(f"{about.name} knows labels 0 to {classes - 1}, but the data has {int(data.y.max())}.")


def say_far(systems: list[Purification], data: Data) -> None:
    """Says once for each denoiser if the data's images are far from the size that it was trained on."""
    for name in dict.fromkeys(how.denoiser for how in systems if how.method != "none"):
        weights.say_far(weights.card(weights.find(name)), data.x)


def run(plan: Plan, out: Path, resources: Resources, *, part: str | None = None, width: float | None = None) -> None:
    """Runs what is missing of a plan, one ``part`` of its images or until the interval is narrower than ``width``."""
    mine = set(runner.shard(plan.data.ids.tolist(), part))
    if width is not None and (part is not None or plan.options.suite is None or not 0 < width < 1):
        raise UserError("Stopping early needs a suite, a width between 0 and 1, and no shards.")
    with runner.open_ledger(plan.jobs, plan.data, plan.key, out, identity(plan.options)) as ledger:
        width = width and min(width, ledger.facts().get("width", width))
        ledger.note(width=width)
        write_text(out / "run.json", json.dumps(asdict(plan.options), indent=1) + "\n")
        if plan.options.suite is not None:
            suite = plan.options.suite
            systems = runner.shard(plan.systems, part)
            runner.certify_all(systems, plan.data, plan.threat, plan.key, ledger, resources, suite)
        if width is None:
            runner.execute(plan.jobs, plan.data, plan.key, ledger, resources, mine)
            return
        ids = shuffled(plan.data, plan.key)
        begun = early.begun(plan.jobs, ledger)
        for end in early.waves(len(ids)):
            runner.execute(plan.jobs, plan.data, plan.key, ledger, resources, set(ids[:end]))
            if early.narrow(plan.jobs, ledger, ids[:end], width):
                break
        if not begun <= set(ids[:end]):  # or its images would be those that happened to be done
            runner.execute(plan.jobs, plan.data, plan.key, ledger, resources)


PROBED = 16


def identity(options: Evaluation) -> dict:
    """What of the options a run is besides what its jobs say."""
    return {"micro_batch": options.micro_batch, "suite": options.suite and sizes.title(options.suite)}


def check_complete(plan: Plan, out: Path) -> None:
    """Refuses a ledger in which images are missing."""
    with Ledger(out / "ledger.sqlite") as ledger:
        for job in plan.jobs:
            missing = sum(len(task.data.ids) for task in pending([job], plan.data, ledger))
            if missing:
                raise UserError(
                    f"{out} is not complete: {missing} images of {job.system.name}, {job.stage.name} are missing; "
                    "finish every shard, and merge them all."
                )


def fold(plan: Plan, ledger: Ledger) -> dict:
    """What a run's ledger says, before anything is held back."""
    options = plan.options
    found = results.results(
        ledger,
        plan.jobs,
        order=shuffled(plan.data, plan.key),
        title=f"{', '.join(system.name for system in plan.systems)} on {_images(options)}",
        suite=options.suite and sizes.title(options.suite),
        seed=options.seed,
        precision=options.precision,
        data={
            "name": _images(options),
            "split": options.split,
            "images": max(len(ledger.done(job.system.name, job.stage.name)) for job in plan.jobs),
            "sha256": ledger.spec()["data"]["x"]["sha256"],
            "classes": list(plan.classes),
        },
        threat={"norm": options.threat.norm, "eps": options.threat.eps, "why": ""},
        about={name: in_words(how, judge) for name, how, judge in named(options)},
    )
    return found | {"seconds": round(sum(row["seconds"] for row in found["rows"]), 1)}


def finish(plan: Plan, out: Path, command: str, allow_red: bool) -> dict:
    """Folds the ledger of a run into its results, pictures and page."""
    with Ledger(out / "ledger.sqlite") as ledger:
        ledger.note(command=command, allow_red=allow_red)
        found = fold(plan, ledger)
        shown = views.pictures(ledger, plan.jobs, plan.data, plan.key)
    found = folder.hold_back(found, allow_red)
    folder.publish(out, found, shown)
    return found


def _images(options: Evaluation) -> str:
    return f"{options.data} under {options.corruption}" if options.corruption else options.data


def load(out: Path, resources: Resources) -> Plan:
    """The plan of an earlier run, checked to be the one that its ledger belongs to: same images, systems and stages."""
    kept = stored.read_json(out / "run.json", "options")
    try:
        options = Evaluation(
            **kept
            | {
                "purification": _purification(kept["purification"]),
                "classification": Classification(**kept["classification"]),
                "threat": ThreatModel(**kept["threat"]),
                "search": Search(**kept["search"]),
                "systems": kept["systems"] and {name: _stored(entry) for name, entry in kept["systems"].items()},
            }
        )
    except (TypeError, KeyError) as e:
        raise UserError(f"{out / 'run.json'} is of another version of Lustral or damaged ({e}).") from e
    with Ledger(out / "ledger.sqlite") as ledger:
        before = ledger.spec()
    # The ledger says of how many images the run is: where it grew, a kill may have come before run.json's turn.
    made = make(replace(options, images=growth.images(before)), resources)
    now = json.loads(json.dumps(describe(made.jobs, made.data, made.key)))
    if lines := differences(_anywhere({part: before.get(part) for part in now}), _anywhere(now)):
        raise UserError(
            f"{out} was run with other options, data, networks or code than are here now; what differs is "
            f"{'; '.join(lines[:3])}."
        )
    return made


def _anywhere(spec: Any) -> Any:
    """A spec without the devices that networks were on: what a GPU found is read on any machine."""
    if isinstance(spec, dict) and spec.get("type") == f"{OnDevice.__module__}.{OnDevice.__qualname__}":
        return _anywhere(spec["inner"])
    if isinstance(spec, dict):
        return {name: _anywhere(part) for name, part in spec.items()}
    return [_anywhere(part) for part in spec] if isinstance(spec, list) else spec


def _stored(entry: dict[str, dict | None]) -> Entry:
    how, judge = entry["purification"], entry["classification"]
    return Entry(how and _purification(how), judge and Classification(**judge))


def _purification(stored: dict) -> Purification:
    """Options as they were; earlier versions named a guide for every method."""
    return Purification(**stored if stored["method"] == "agdm" else stored | {"guide": None})
