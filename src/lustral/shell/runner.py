"""Runs a plan into a ledger: level by level, a batch per core, with progress; resumes, shards and stops early."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import lustral

from ..attacks.anatomy import effort
from ..core.errors import UserError
from ..core.noise import Key
from ..core.threat import Threat
from ..evaluate import sizes
from ..evaluate.certificate import certify
from ..evaluate.protocol import Chunk, Data, Job, System, Task, describe, levels, pending, run
from . import gauge
from .ledger import Ledger
from .options import Resources
from .terminal import Log, Progress, progress, versions


def work(job: Job) -> float:
    """Network rows that one image of a job may cost, for the estimate of the time left."""
    purifier, attack = job.system.defence.purifier, job.stage.attack
    spent = job.draws + (effort(attack) * job.system.defence.vote.draws if attack is not None else 0)
    return spent * (BARE if purifier is None else gauge.calls(purifier))


BARE = 0.1
"""What a row through a classifier alone costs, of one through a denoiser."""


def shard(items: Sequence, part: str | None) -> Sequence:
    """One part of a run's images or systems, named like 1/2; all where there is no part."""
    if part is None:
        return items
    try:
        k, n = (int(word) for word in part.split("/"))
    except ValueError as e:
        raise UserError(f"A shard is named like 1/2 (the first of two), not {part!r}.") from e
    if not 1 <= k <= n:
        raise UserError(f"A shard is named like 1/2 (the first of two), not {part!r}.")
    return items[k - 1 :: n]


def open_ledger(jobs: Sequence[Job], data: Data, key: Key, folder: Path, facts: dict | None = None) -> Ledger:
    """The ledger of a run, created or checked to be this run's, which may go on with more images than it had."""
    spec = describe(jobs, data, key, torch=torch.__version__, lustral=lustral.__version__, **(facts or {}))
    ledger = Ledger(folder / "ledger.sqlite", spec, data)
    if not ledger.places():  # versions are those with which it began
        ledger.note(versions=versions())
    return ledger


def execute(
    jobs: Sequence[Job], data: Data, key: Key, ledger: Ledger, resources: Resources, only: set[int] | None = None
) -> None:
    """Runs what the ledger does not hold yet, of the images ``only``. Ctrl-C keeps what is done.

    Batches side by side, each on one core, are faster than one batch on all cores, and do not mind a busy neighbour.
    """
    mine = set(data.ids.tolist()) if only is None else only
    with progress() as bar:
        counted = {id(job): len(mine & set(data[: job.images].ids.tolist())) for job in jobs}
        kept = {id(job): len(mine & ledger.done(job.system.name, job.stage.name)) for job in jobs}
        total, before = (sum(work(job) * count[id(job)] for job in jobs) for count in (counted, kept))
        task = bar.add_task("starting", total=total, completed=before)
        for together in levels(jobs):
            todo = list(pending(together, data, ledger, batch=resources.batch, only=mine))
            left = {id(job): sum(len(t.data.ids) for t in todo if t.job is job) for job in together}
            gone = {id(job): counted[id(job)] - kept[id(job)] - left[id(job)] for job in together}  # decided earlier
            bar.advance(task, sum(work(job) * gone[id(job)] for job in together))

            with saying(lambda: _kept(jobs, mine, ledger)):
                side_by_side([partial(told, one, key, bar, task) for one in todo], ledger.write, resources)


@contextmanager
def saying(kept: Callable[[], str]) -> Iterator[None]:
    """Lets a request to end say what is kept."""
    try:
        yield
    except KeyboardInterrupt as e:
        raise KeyboardInterrupt(str(e) or kept()) from e


def _kept(jobs: Sequence[Job], mine: set[int], ledger: Ledger) -> str:
    done = sum(len(mine & ledger.done(job.system.name, job.stage.name)) for job in jobs)
    return f"{done:,} images of stages are kept" if done else "only what was measured before any attack is kept"


def _certified(systems: Sequence[System], ledger: Ledger) -> str:
    done = sum(ledger.certificate(system.name) is not None for system in systems)
    return f"nothing but {done} of {len(systems)} gradient certificates is kept" if done else "nothing was finished yet"


def told(one: Task, key: Key, bar: Progress | Log, task: int) -> Chunk:
    """Runs a batch, and advances a bar by its work meanwhile."""
    each = BARE if one.job.system.defence.purifier is None else 1.0
    bar.update(task, description=f"{one.job.system.name}: {one.job.stage.name}")
    with gauge.gauged(one.job.system.meter, each, work(one.job) * len(one.data.ids), partial(bar.advance, task)):
        return run(one, key)


def cores() -> int:
    """The cores that this process may use: a container or taskset may leave fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(resources: Resources) -> int:
    """How many batches run at a time."""
    return resources.threads or cores()


def each(resources: Resources) -> Resources:
    """What each of the workers may spend: they share the memory."""
    return replace(resources, budget=resources.budget / workers(resources))


def side_by_side(calls: Sequence[Callable], note: Callable, resources: Resources) -> None:
    """Makes calls, one on each core at a time, and notes their results as they come."""
    pool = ThreadPoolExecutor(workers(resources), initializer=torch.set_num_threads, initargs=(1,))
    try:
        for future in as_completed([pool.submit(call) for call in calls]):
            note(future.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def certify_all(
    systems: Sequence[System],
    data: Data,
    threat: Threat,
    key: Key,
    ledger: Ledger,
    resources: Resources,
    suite: str,
) -> None:
    """Measures the gradients and the noise of every system that has no certificate in the ledger yet."""
    how = {"eot": sizes.SIZES[suite].eot, "thorough": suite in ("standard", "gold")}
    todo = [system for system in systems if ledger.certificate(system.name) is None]
    planned = {system.name: _rows_of_certificate(system, **how) for system in todo}
    with progress() as bar:
        task = bar.add_task("gradient certificates", total=sum(planned.values()) or 1)
        bar.advance(task, 0 if todo else 1)

        def measured(system: System) -> tuple[str, dict]:
            with gauge.gauged(system.meter, 1.0, planned[system.name], partial(bar.advance, task)):
                return system.name, certify(system, data, threat, key, **how)

        with saying(lambda: _certified(systems, ledger)):
            side_by_side(
                [partial(measured, system) for system in todo], lambda found: ledger.certify(*found), resources
            )


def _rows_of_certificate(system: System, eot: int, thorough: bool) -> float:
    """About how many network rows a certificate costs, for the estimate of the time left: as counted on the digits."""
    draws = 1 if not system.random else eot
    rows = 700 + (128 * eot if system.random else 0) + (1700 * draws if thorough else 0)
    return float(rows * (1 if system.defence.purifier is None else gauge.calls(system.defence.purifier)))
