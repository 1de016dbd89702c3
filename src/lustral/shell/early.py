"""Runs that stop early: when an interval is narrow enough, and which images a run is done with."""

from collections.abc import Sequence

from ..evaluate import metrics
from ..evaluate.protocol import Data, Job, decided
from .ledger import Ledger


def begun(jobs: Sequence[Job], ledger: Ledger) -> set[int]:
    """The images of which any stage is done."""
    return set().union(*(ledger.done(job.system.name, job.stage.name) for job in jobs))


def missing(jobs: Sequence[Job], data: Data, ledger: Ledger) -> set[int]:
    """The images with which some job has something left to do."""
    return set().union(*(_left(job, data, ledger) for job in jobs))


def _left(job: Job, data: Data, ledger: Ledger) -> set[int]:
    gone = ledger.done(job.system.name, job.stage.name) | decided(job, ledger)
    return set(data[: job.images].ids.tolist()) - gone


def narrow(jobs: Sequence[Job], ledger: Ledger, ids: Sequence[int], width: float) -> bool:
    """Whether every system's worst case has an anytime-valid interval narrower than ``width``, on its images in order.

    ``ids`` are the first images of an order that was fixed before any was seen.
    """
    worst = [job for job in jobs if job.stage.name == "worst"]
    return bool(worst) and all(_width(job, ledger, ids) < width for job in worst)


def _width(job: Job, ledger: Ledger, ids: Sequence[int]) -> float:
    standing = ledger.standing(job.system.name, "worst", job.system.defence.vote)
    found = metrics.sequence([standing[image].decisions for image in ids if image in standing])
    return found.high - found.low
