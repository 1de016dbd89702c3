"""The protocol: which systems face which attacks on which images, as a plan; running it is a generator of results.

Noise has three disjoint homes below the run's key: ``attack`` (what the search sees), ``judge`` (what the tables are
made of) and ``known`` (the one noise of a deterministic white box, which attacker and judge share by definition).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..attacks.gradients import KnownNoise
from ..attacks.pgd import Attack
from ..core.errors import UserError
from ..core.noise import Key
from ..core.spec import runtime, spec
from ..defence import Defence
from ..denoisers.base import Meter
from .judge import judge, verify


class Data(NamedTuple):
    """Images with stable identities: ids [n], x [n, c, h, w] in [0, 1], y [n]."""

    ids: Tensor
    x: Tensor
    y: Tensor

    def __getitem__(self, rows) -> "Data":
        return Data(*(part[rows] for part in (self.ids, self.x, self.y)))


@dataclass(frozen=True, eq=False)
class System:
    """A named defence, and the meter that counts its network's rows."""

    name: str
    defence: Defence
    meter: Meter = runtime(None)


@dataclass(frozen=True)
class Stage:
    """A named attack (None: no attack) and how many draws judge its candidates.

    ``knowledge`` is what the attacker has of the noise: ``fresh`` (its distribution; the judge draws anew) or ``known``
    (its very values; the defence is then deterministic and judged on one decision).
    """

    name: str
    attack: Attack | None = None
    draws: int = 20
    knowledge: str = "fresh"

    def __post_init__(self) -> None:
        if self.knowledge not in ("fresh", "known"):
            raise UserError(f"A stage's knowledge of the noise is 'fresh' or 'known', not {self.knowledge!r}.")
        if self.draws < 1:
            raise UserError(f"A stage needs at least 1 judging draw, not {self.draws}.")


@dataclass(frozen=True, eq=False)
class Job:
    """One cell of the plan: a system, a stage, and the first ``images`` of the data."""

    system: System
    stage: Stage
    images: int

    @property
    def draws(self) -> int:
        """Judging draws per image: whole decisions, one where the noise is known or there is no purifier."""
        votes = self.system.defence.vote.draws
        if self.system.defence.purifier is None:
            return votes
        return votes if self.stage.knowledge == "known" else votes * max(1, self.stage.draws // votes)


class Chunk(NamedTuple):
    """Results for some images of a job. ``seconds``, ``forward`` and ``backward`` are totals and not reproducible."""

    job: Job
    ids: Tensor
    y: Tensor
    x: Tensor
    distance: Tensor
    distance_8bit: Tensor
    repaired: Tensor
    loss: Tensor
    looks: Tensor
    logits: Tensor
    seconds: float
    forward: int
    backward: int


Done = Callable[[Job], set[int]]


def _check(jobs: Sequence[Job]) -> None:
    names = [(job.system.name, job.stage.name) for job in jobs]
    if not names:
        raise UserError("A plan needs at least one stage; clean is the least.")
    if len(set(names)) != len(names):
        raise UserError("A plan names every (system, stage) once; give repeated stages names of their own.")


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
            }
            for job in jobs
        },
        "jobs": [{"system": j.system.name, "stage": spec(j.stage), "images": j.images} for j in jobs],
        **facts,
    }


def pending(
    jobs: Sequence[Job], data: Data, *, batch: int = 64, done: Done = lambda job: set()
) -> Iterator[tuple[Job, Data]]:
    """What is left to run: every job's images that ``done`` does not hold, ``batch`` at a time, in the plan's order."""
    _check(jobs)
    for job in jobs:
        finished = done(job)
        rows = [row for row in range(min(job.images, len(data.ids))) if int(data.ids[row]) not in finished]
        for start in range(0, len(rows), batch):
            yield job, data[torch.tensor(rows[start : start + batch])]


def evaluate(
    jobs: Sequence[Job], data: Data, key: Key, *, batch: int = 64, done: Done = lambda job: set()
) -> Iterator[Chunk]:
    """Runs what is left of a plan, one batch after another."""
    for job, part in pending(jobs, data, batch=batch, done=done):
        yield run(job, part, key)


def run(job: Job, data: Data, key: Key) -> Chunk:
    """Attacks, verifies and judges one batch of images."""
    started, count = time.perf_counter(), (job.system.meter or Meter()).here
    before = count.forward, count.backward
    place = key.fold(job.system.name, job.stage.name)
    defence, attack = job.system.defence, job.stage.attack
    known = job.stage.knowledge == "known"
    home = place.fold("known") if known else place.fold("judge")
    loss, looks = torch.zeros(len(data.y)), torch.zeros(len(data.y), dtype=torch.long)
    x = data.x
    if attack is not None:
        victim = KnownNoise(defence, home) if known else defence
        x, loss, looks = attack.run(victim, data.x, data.y, place.fold("attack").rng(data.ids))
    checked = verify(x, data.x, attack.threat if attack is not None else None)
    logits = judge(defence, checked.x, home.rng(data.ids), job.draws)
    return Chunk(
        job,
        data.ids,
        data.y,
        *checked,
        loss,
        looks,
        logits,
        time.perf_counter() - started,
        count.forward - before[0],
        count.backward - before[1],
    )
