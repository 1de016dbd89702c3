"""The protocol: which systems face which attacks on which images, as a plan; running it is a generator of results.

Noise has disjoint homes below the run's key: ``attack`` (what a search sees: its gradients, and below ``select`` its
choices), ``judge`` (what the tables are made of) and ``known`` (the noise of a deterministic white box, which attacker
and judge share by definition).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..attacks.foreign import Foreign
from ..attacks.gradients import KnownNoise
from ..attacks.search import Attack, Outcome
from ..core import check
from ..core.errors import UserError
from ..core.inference import differentiable
from ..core.noise import Key
from ..core.purifier import Purifier
from ..core.spec import runtime, spec
from ..core.threat import Threat
from ..core.vote import Vote
from ..core.whole import numbers
from ..defence import Defence
from ..denoisers.base import Meter
from .judge import judge, rows, verify
from .origin import Origin
from .standing import Standing, Store, standings
from .witness import Later, Probe, Witness, alike, leading, paths

KNOWLEDGE = ("fresh", "known", "init", "step")


class Data(NamedTuple):
    """Images with stable identities: ids [n], x [n, c, h, w] in [0, 1], y [n]; the names of the classes, if any."""

    ids: Tensor
    x: Tensor
    y: Tensor
    classes: tuple[str, ...] = ()

    def __getitem__(self, rows) -> "Data":
        return Data(self.ids[rows], self.x[rows], self.y[rows], self.classes)


def shuffled(data: Data, key: Key) -> list[int]:
    """Image ids in the order in which an anytime-valid interval sees them, whatever the order of the file."""
    u = key.fold("order").rng(1).uniform(torch.empty(1, len(data.ids)))[0]
    return data.ids[u.argsort(stable=True)].tolist()


@dataclass(frozen=True, eq=False)
class System:
    """A named defence, the meter that counts its network's rows, and what suites know of it.

    A defence without noise (``random`` false) decides once where another is judged on many draws. ``surrogate`` is a
    cheaper purifier with nearly the same gradient. ``origin`` says what is known of its training.
    """

    name: str
    defence: Defence
    meter: Meter = runtime(None)
    random: bool = True
    surrogate: Purifier | None = None
    origin: Origin = runtime(Origin())


@dataclass(frozen=True)
class Stage:
    """A named attack (None: no attack) and how many draws judge its candidates.

    ``knowledge`` is what the attacker has of the noise: ``fresh`` (its distribution; the judge draws anew), ``known``
    (its very values; the defence is then deterministic and judged on one decision), or the values of one part, ``init``
    or ``step``. Images that a stage named in ``after`` has decided, so that no draw of the judge was right, are left
    out. ``choose`` names stages whose worst candidate for each image is judged anew, instead of an attack.
    """

    name: str
    attack: Attack | None = None
    draws: int = 20
    knowledge: str = "fresh"
    after: tuple[str, ...] = ()
    choose: tuple[str, ...] = ()
    threat: Threat | None = None

    def __post_init__(self) -> None:
        numbers(self)
        if self.knowledge not in KNOWLEDGE:
            raise UserError(f"A stage's knowledge of the noise is {' or '.join(KNOWLEDGE)}, not {self.knowledge!r}.")
        if self.draws < 1:
            raise UserError(f"A stage needs at least 1 judging draw, not {self.draws}.")
        if self.choose and (self.attack is not None or self.threat is None):
            raise UserError("A stage that chooses among others' candidates has their threat and no attack of its own.")

    @property
    def part(self) -> str:
        """Which part of the noise is known, as ``KnownNoise`` names it."""
        return "all" if self.knowledge == "known" else self.knowledge

    @property
    def bound(self) -> Threat | None:
        """The threat that its candidates must keep to."""
        return self.attack.threat if self.attack is not None else self.threat


@dataclass(frozen=True, eq=False)
class Job:
    """One cell of the plan: a system, a stage, and the first ``images`` of the data."""

    system: System
    stage: Stage
    images: int

    __post_init__ = numbers

    @property
    def draws(self) -> int:
        """Judging draws per image: whole decisions, one where there is no noise or it is known."""
        votes = self.system.defence.vote.draws
        if self.system.defence.purifier is None or not self.system.random or self.stage.knowledge == "known":
            return votes
        return votes * max(1, self.stage.draws // votes)


class Chunk(NamedTuple):
    """Results for some images of a job, and what a witness measured of a few of them.

    ``seconds``, ``forward`` and ``backward`` are totals and not reproducible.
    """

    job: Job
    ids: Tensor
    y: Tensor
    x: Tensor
    distance: Tensor
    distance_8bit: Tensor
    repaired: Tensor
    found: Outcome
    logits: Tensor
    seconds: float
    forward: int
    backward: int
    probes: tuple[Probe, ...] = ()


def _check(jobs: Sequence[Job]) -> None:
    names = [(job.system.name, job.stage.name) for job in jobs]
    if not names:
        raise UserError("A plan needs at least one stage; clean is the least.")
    if len(set(names)) != len(names):
        raise UserError("A plan names every (system, stage) once; give repeated stages names of their own.")
    earlier: dict[str, set[str]] = {}
    for job in jobs:
        there = earlier.setdefault(job.system.name, set())
        if missing := {*job.stage.after, *job.stage.choose} - there:
            raise UserError(f"Stage {job.stage.name!r} needs {', '.join(sorted(missing))} to come before it.")
        there.add(job.stage.name)


def describe(jobs: Sequence[Job], data: Data, key: Key, **facts: object) -> dict:
    """The spec of a run: everything that can change its ledger, batch sizes and budgets excluded."""
    _check(jobs)
    return {
        "key": spec(key),
        "data": spec({"ids": data.ids, "x": data.x, "y": data.y}),
        "systems": {
            job.system.name: {
                "classifier": spec(job.system.defence.classifier),
                "purifier": spec(job.system.defence.purifier),
                "vote": spec(job.system.defence.vote),
                "random": job.system.random,
            }
            for job in jobs
        },
        "jobs": [{"system": j.system.name, "stage": spec(j.stage), "images": j.images} for j in jobs],
        **facts,
    }


class Task(NamedTuple):
    """A batch of one job: its data, and the images from which it starts (the clean ones, or chosen candidates).

    ``places`` are the positions of its images in the data of the run; without, those in the batch.
    """

    job: Job
    data: Data
    start: Tensor
    places: Sequence[int] | None = None

    @property
    def by_id(self) -> dict[int, int]:
        """The position of every image, by id."""
        ids = self.data.ids.tolist()
        return dict(zip(ids, range(len(ids)) if self.places is None else self.places, strict=True))


def levels(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """The jobs in an order in which all that a job builds on comes in an earlier list; lists may run side by side."""
    _check(jobs)
    level: dict[tuple[str, str], int] = {}
    for job in jobs:
        before = [level[job.system.name, name] for name in (*job.stage.after, *job.stage.choose)]
        level[job.system.name, job.stage.name] = 1 + max(before, default=-1)
    for depth in range(1 + max(level.values())):
        yield [job for job in jobs if level[job.system.name, job.stage.name] == depth]


def pending(
    jobs: Sequence[Job], data: Data, store: Store, *, batch: int = 64, only: set[int] | None = None
) -> Iterator[Task]:
    """What is left of jobs whose predecessors are done: images not in the store and not decided, in batches.

    ``only`` restricts it to some images: a shard, or the first ones.
    """
    for job in jobs:
        within = data[: job.images]
        left_out = store.done(job.system.name, job.stage.name) | decided(job, store)
        ids = within.ids.tolist()
        rows = [row for row, image in enumerate(ids) if image not in left_out and (only is None or image in only)]
        start = worst_candidates(job, within[rows], store) if job.stage.choose and rows else within.x[rows]
        for first in range(0, len(rows), batch):
            part = slice(first, first + batch)
            yield Task(job, within[rows[part]], start[part], rows[part])


def decided(job: Job, store: Store) -> set[int]:
    """Images whose candidate of an earlier stage was wrong in every draw and decision: none can do more harm."""
    vote = job.system.defence.vote
    found = (store.standing(job.system.name, stage, vote) for stage in job.stage.after)
    return {image for each in found for image, at in each.items() if at.decisions == at.draws == 0}


def worst_candidates(job: Job, data: Data, store: Store) -> Tensor:
    """Of every image, the candidate that stands worst among the stages to choose from; the clean image if none does."""
    name, vote, x = job.system.name, job.system.defence.vote, data.x.clone()
    standing = {stage: store.standing(name, stage, vote) for stage in job.stage.choose}
    worst = []
    for image in data.ids.tolist():
        met = [(found[image], stage) for stage, found in standing.items() if image in found]
        worst.append(min(met)[1] if met else None)
    for stage in job.stage.choose:
        rows = [row for row, found in enumerate(worst) if found == stage]
        if rows:
            x[rows] = store.candidates(name, stage, data.ids[rows].tolist()).to(x)
    return x


def evaluate(jobs: Sequence[Job], data: Data, key: Key, *, batch: int = 64) -> Iterator[Chunk]:
    """Runs a plan, one batch after another, and remembers in memory what later stages build on."""
    store = Memory()
    for together in levels(jobs):
        for task in pending(together, data, store, batch=batch):
            store.write(chunk := run(task, key))
            yield chunk


class Memory:
    """A store without a file."""

    def __init__(self):
        self._found: dict[tuple[str, str], dict[int, tuple[Tensor, Tensor, Tensor]]] = {}

    def write(self, chunk: Chunk) -> None:
        place = self._found.setdefault((chunk.job.system.name, chunk.job.stage.name), {})
        place |= zip(chunk.ids.tolist(), zip(chunk.x, chunk.logits, chunk.y, strict=True), strict=True)

    def done(self, system: str, stage: str) -> set[int]:
        return set(self._found.get((system, stage), {}))

    def standing(self, system: str, stage: str, vote: Vote) -> dict[int, Standing]:
        found = self._found.get((system, stage), {})
        if not found:
            return {}
        logits, y = (torch.stack(part) for part in list(zip(*found.values(), strict=True))[1:])
        return standings(list(found), logits, y, vote)

    def candidates(self, system: str, stage: str, ids: Sequence[int]) -> Tensor:
        return torch.stack([self._found[system, stage][image][0] for image in ids])


@differentiable
def run(task: Task, key: Key) -> Chunk:
    """Attacks, verifies and judges one batch of images, under a witness."""
    job, data, start, places = *task[:3], task.by_id
    check.labels(data.y, len(data.ids))
    started, count = time.perf_counter(), (job.system.meter or Meter()).here
    before = count.forward, count.backward
    place = key.fold(job.system.name, job.stage.name)
    defence, stage = job.system.defence, job.stage
    watched = Witness(defence, stage.bound, places)
    known = None if stage.knowledge == "fresh" else KnownNoise(watched, place.fold("known"), stage.part)
    noise = known.noise if known else lambda rows: rows
    lead = leading(data.ids, places)
    later = Later(defence, data.x[lead], noise(place.fold("later").rng(data.ids[lead])))
    found = nothing(start)
    if stage.attack is not None:
        found = stage.attack.run(known or watched, start, data.y, place.fold("attack").rng(data.ids))
    probes = watched.probes()
    if isinstance(stage.attack, Foreign):  # its rows have numbers, which are those of no image
        probes = [probe._replace(image=int(data.ids[probe.image % len(data.ids)])) for probe in probes]
    checked = verify(found.x, data.x, stage.bound)
    judging = place.fold("judge").rng(data.ids)
    logits = judge(defence, checked.x, judging, job.draws, noise)
    if stage.attack is not None:
        first = rows(defence, judging, job.draws, noise)[:: logits.shape[1]]
        probes += alike(defence, checked.x, logits[:, 0], first, places)
    check.labels(data.y, len(data.ids), logits.shape[-1])
    if len(some := watched.routes(data.ids)):
        ways = data.x[some], checked.x[some], data.y[some]
        probes += paths(defence, *ways, noise(place.fold("path").rng(data.ids[some])))
    probes += later.again()
    spent = time.perf_counter() - started, count.forward - before[0], count.backward - before[1]
    return Chunk(job, data.ids, data.y, *checked, found, logits, *spent, tuple(probes))


def nothing(x: Tensor) -> Outcome:
    """The outcome of no search at all."""
    zeros = x.new_zeros(len(x))
    return Outcome(x, zeros, zeros.clone(), x.new_zeros(len(x), 0), x.new_zeros(len(x), 0))
