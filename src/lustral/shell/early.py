"""Runs that stop early: when an interval is narrow enough, and which images a run is done with."""

from collections.abc import Sequence

from ..evaluate import metrics
from ..evaluate.protocol import Data, Job, decided
from .ledger import Ledger

WAVE = 16
"""Images after which a run that may stop early looks whether it does."""


def waves(images: int) -> range:
    """The numbers of images after which a run of so many looks; the last may be more than there are."""
    return range(WAVE, images + WAVE, WAVE)


def stop(jobs: Sequence[Job], ledger: Ledger, ids: Sequence[int], width: float) -> int | None:
    """After how many of the images, in an order that was fixed before any was seen, a run stops; None: at the end."""
    return next((end for end in waves(len(ids)) if narrow(jobs, ledger, ids[:end], width)), None)


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
    """Whether every system's worst case has an anytime-valid interval narrower than ``width`` on these images."""
    worst = [job for job in jobs if job.stage.name == "worst"]
    return bool(worst) and all(_width(job, ledger, ids) < width for job in worst)


def _width(job: Job, ledger: Ledger, ids: Sequence[int]) -> float:
    standing = ledger.standing(job.system.name, "worst", job.system.defence.vote)
    values = [standing[image].decisions for image in ids if image in standing]
    found = metrics.sequence(values) if values else metrics.Estimate(0.0, 0.0, 1.0)
    return found.high - found.low
