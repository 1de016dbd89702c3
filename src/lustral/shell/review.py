"""For reviewers: a run's results and page against its ledger, and its ledger against images that are run again."""

import json
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from ..attacks.foreign import Foreign
from ..core.errors import UserError
from ..core.noise import Key
from ..core.spec import differences
from ..core.threat import Threat
from ..evaluate import judge, sizes
from ..evaluate.protocol import Data, Job, System, decided, shuffled, worst_candidates
from . import build, early, folder, plan, runner, sameness, views
from .files import reading
from .ledger import Ledger
from .options import Resources
from .report import render
from .run import Run
from .scratch import unkept


class Runnable(Protocol):
    """What of a plan is needed to run its images again."""

    jobs: list[Job]
    systems: list[System]
    data: Data
    threat: Threat
    key: Key


Fold = Callable[[Ledger], dict]
"""What a ledger says, before anything is held back."""


def verify(place: Path, images: int, resources: Resources) -> str:
    """Holds a run's results against its ledger, and the ledger against some images that it runs again, all stages."""
    build.prepare(resources)
    planned = plan.load(place, resources)
    about = plan.identity(planned.options)
    return hold(place, planned, about, partial(plan.fold, planned), images, resources)


def hold(place: Path, planned: Runnable, about: dict, fold: Fold, images: int, resources: Resources) -> str:
    """The same for any run that can be run again; ``about`` is what it is besides what its jobs say."""
    with Ledger(place / "ledger.sqlite") as ledger, unkept() as elsewhere:
        stored, jobs, data = ledger.spec(), planned.jobs, planned.data
        if "versions" not in ledger.facts():
            raise UserError(
                f"{place} is of an earlier version of Lustral, which kept less than this one verifies; verify it with"
                " that one, or run it again into another folder."
            )
        with runner.open_ledger(jobs, data, planned.key, elsewhere, about) as again:
            if again.spec() != stored:
                lines = differences(stored, again.spec())
                raise UserError(f"{place} cannot be run again as it was; what differs is {'; '.join(lines[:3])}.")
            done, finished = _done(place, planned, ledger)
            if finished:
                _claimed(place, fold, ledger)
                _shown(place, planned, ledger)
            for job in jobs:
                _follows(job, data, ledger)
            if images < 1 or not done:
                raise UserError("There is nothing to verify: ask for at least 1 image of a run that finished some.")
            batched = any(isinstance(job.stage.attack, Foreign) for job in jobs)  # whose noise is that of whole batches
            count = len(done) if batched else min(images, len(done))
            chosen = set(secrets.SystemRandom().sample(sorted(done), count))
            runner.execute(jobs, data, planned.key, again, resources, chosen)
            counts = [sameness.stage(job, data, ledger, again, chosen) for job in jobs]
            run = Run(ledger, jobs)
            for system in planned.systems:
                sameness.probes(run, system, again, chosen)
            if suite := sizes.named(about["suite"]):
                runner.certify_all(planned.systems, data, planned.threat, planned.key, again, resources, suite)
            for system in planned.systems:
                sameness.certificate(run, system, again)
    return _said(chosen, counts, finished)


def _said(chosen: set[int], counts: list[tuple[int, float]], finished: bool) -> str:
    draws, worst = sum(n for n, _ in counts), max(gap for _, gap in counts)
    how = "equal to the bit" if worst == 0 else f"equal within {worst:.1e}"
    rest = (
        "Results, pictures and page are what the ledger says; command, seconds and versions are its owner's word."
        if finished
        else "The run is not finished, so nothing is said of its numbers."
    )
    names = ", ".join(map(str, sorted(chosen)))
    return f"Verified images {names}: candidates, looks and {draws:,} draws of {len(counts)} stages are {how}. {rest}"


def _done(place: Path, planned: Runnable, ledger: Ledger) -> tuple[set[int], bool]:
    """The images that are finished, and whether the run is; an error where images are missing that no rule explains."""
    _planned_alone(place, planned, ledger)
    every = set(planned.data.ids.tolist())
    done = every - early.missing(planned.jobs, planned.data, ledger)
    half = early.begun(planned.jobs, ledger) - done
    shown = [name for name in ("results.json", "pictures.npz", "report.html") if (place / name).exists()]
    if done != every and not shown:
        return done, False
    if half:
        raise UserError(f"{place} has results, but its ledger lacks stages of {len(half)} images; run it again.")
    if done != every:
        width, order = ledger.facts().get("width"), shuffled(planned.data, planned.key)
        stop = None if width is None else early.stop(planned.jobs, ledger, order, width)
        if stop is None or set(order[:stop]) != done:
            raise UserError(
                f"{place} has results of {len(done)} images, but is a run of {len(every)}, and not one that its rule "
                "would have stopped there: images were taken out, or it was not finished. Run it again."
            )
    if len(shown) < 3:
        raise UserError(
            f"{place} is finished, but of results.json, pictures.npz and report.html it has "
            f"{' and '.join(shown) or 'none'}; `lustral evaluate` writes them anew, without a run."
        )
    return done, True


def _planned_alone(place: Path, planned: Runnable, ledger: Ledger) -> None:
    """Refuses a ledger with stages or images that the run has not."""
    jobs = {(job.system.name, job.stage.name): job for job in planned.jobs}
    if others := sorted(ledger.places() - jobs.keys()):
        raise UserError(f"The ledger of {place} holds {', '.join(others[0])}, which is no stage of its run.")
    if others := sorted(ledger.certified() - {job.system.name for job in planned.jobs}):
        raise UserError(f"The ledger of {place} holds a certificate of {others[0]}, which is no system of its run.")
    made = ledger.facts().get("versions") or {}
    if any(made.get(name, ledger.spec().get(name)) != ledger.spec().get(name) for name in ("torch", "lustral")):
        raise UserError(f"The ledger of {place} names other versions of torch or Lustral than its run is of.")
    for (system, stage), job in jobs.items():
        ids = ledger.done(system, stage)
        more = (ids - set(planned.data[: job.images].ids.tolist())) | (ids & decided(job, ledger))
        if more:
            raise UserError(f"The ledger of {place} holds image {min(more)} at {system}, {stage}, where it never was.")


def _claimed(place: Path, fold: Fold, ledger: Ledger) -> None:
    """Refuses results that are not what the ledger says."""
    said, found = folder.read(place)[0], fold(ledger)
    shown = folder.hold_back(found, bool(ledger.facts().get("allow_red")))
    if not sameness.alike(json.loads(json.dumps(folder.finite(shown))), said):
        raise UserError(
            f"{place / 'results.json'} does not say what its ledger does: one of them was changed, or another version"
            " of Lustral wrote it. `lustral evaluate` writes it anew, without a run; then verify again."
        )


def _shown(place: Path, planned: Runnable, ledger: Ledger) -> None:
    """Refuses pictures that are not those of the ledger, and a page that does not show the results and pictures."""
    said, kept = folder.read(place)
    found = views.pictures(ledger, planned.jobs, planned.data, planned.key)
    same = kept.keys() == found.keys() and all(
        kept[name].shape == found[name].shape and _near(kept[name], found[name]) for name in found
    )
    if not same:
        raise UserError(
            f"{place / 'pictures.npz'} does not hold the ledger's pictures; `lustral evaluate` writes it anew."
        )
    if not _holds(place / "report.html", render(said, kept).encode()):
        raise UserError(
            f"{place / 'report.html'} is not the page of the results beside it: it was changed, or other versions of "
            "Lustral or of what draws its plots wrote it. `lustral report` writes it anew; then verify again."
        )


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file is this, read only where it is as long."""
    with reading(path):
        return path.stat().st_size == len(content) and path.read_bytes() == content


def _near(kept, found) -> bool:
    """Whether arrays of pixels or labels are the same, up to another machine's rounding."""
    a, b = torch.from_numpy(kept), torch.from_numpy(found)
    return torch.equal(a, b) if not a.is_floating_point() else torch.allclose(a, b.to(a), atol=sameness.TOLERANCE)


def _follows(job: Job, data: Data, ledger: Ledger) -> None:
    """Refuses what of a stage follows from its candidates or earlier stages, without any network, and is not so."""
    place = job.system.name, job.stage.name
    if not ledger.done(*place):
        return
    found = ledger.outcomes(*place)
    row = {image: row for row, image in enumerate(data.ids.tolist())}
    own = data[[row[image] for image in found.ids.tolist()]]
    checked = judge.verify(found.x, own.x, job.stage.bound)
    wrong = [
        ("labels", not torch.equal(found.y, own.y)),
        ("numbers of draws", found.logits.shape[1] != job.draws),
        ("candidates outside the threat", bool(checked.repaired.any())),
        ("distances", not torch.allclose(checked.distance.double(), found.distance, rtol=1e-4, atol=1e-5)),
        ("distances", not torch.allclose(checked.distance_8bit.double(), found.distance_8bit, rtol=1e-4, atol=1e-5)),
    ]
    if job.stage.attack is None:
        start = worst_candidates(job, own, ledger) if job.stage.choose else own.x
        wrong.append(("candidates", not torch.allclose(start, found.x, atol=1e-6)))
    for what, is_wrong in wrong:
        if is_wrong:
            raise UserError(f"The ledger differs at {', '.join(place)}: its {what} are not those that follow.")
