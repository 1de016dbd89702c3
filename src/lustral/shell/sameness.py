"""Is what a run measured the same when it is measured again? Beside the size of what is compared, not beside 1."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.vote import Vote
from ..evaluate import metrics
from ..evaluate.findings import findings
from ..evaluate.protocol import Data, Job, System
from ..evaluate.witness import Probe
from . import results
from .ledger import Ledger
from .run import Run
from .tables import Cost, Outcomes

TOLERANCE = 1e-3
"""The largest difference that another machine's rounding may make, beside the size of what differs."""

COARSE = 1e-2, 1e-4
"""The same of a certificate's numbers, and the size below which they are rounding themselves."""


def stage(job: Job, data: Data, stored: Ledger, again: Ledger, chosen: set[int]) -> tuple[int, float]:
    """The number of draws compared and the largest difference of anything; one beyond rounding is an error."""
    place, where = (job.system.name, job.stage.name), f"{job.system.name}, {job.stage.name}"
    ids = [ledger.done(*place) & chosen for ledger in (stored, again)]
    if ids[0] != ids[1]:
        raise UserError(f"The ledger differs at {where}: it holds other images than the run gives.")
    if not ids[0]:
        return 0, 0.0
    clean = dict(zip(data.ids.tolist(), data.x, strict=True))
    old, new = (_by_image(ledger.outcomes(*place), ids[0]) for ledger in (stored, again))
    vote = job.system.defence.vote
    gaps = {image: gap(old[image], new[image], clean[image], vote) for image in sorted(ids[0])}
    far = [image for image, apart in gaps.items() if not apart <= TOLERANCE]
    if far:
        raise UserError(f"The ledger differs at {where}, image {far[0]}, by {gaps[far[0]]:.1e}.")
    _costs(where, stored.cost(*place), again.cost(*place), all_of_them=stored.done(*place) == ids[0])
    return sum(len(new[image]["logits"]) for image in gaps), max(gaps.values())


def _costs(where: str, kept: Cost, found: Cost, all_of_them: bool) -> None:
    """Refuses numbers of network rows that cannot be; another amount of memory may change those forward."""
    if found.backward > min(kept.backward, kept.forward):
        raise UserError(f"The ledger differs at {where}: it names fewer network rows than some of its images cost.")
    if all_of_them and (kept.backward > MORE * found.backward or kept.forward > MORE * found.forward):
        raise UserError(f"The ledger differs at {where}: it names more network rows than its images cost.")


MORE = 4
"""How often the rows of a run may be those that it costs again: with less memory most are computed more than once."""


def _by_image(found: Outcomes, ids: set[int]) -> dict[int, dict[str, Tensor]]:
    """Everything that a stage has of each image: logits, candidate, what the attack saw of it."""
    parts = {
        "logits": found.logits,
        "x": found.x,
        "repaired": found.repaired.float(),
        "loss": [torch.tensor([one, *all_]) for one, all_ in zip(found.loss.tolist(), found.losses, strict=True)],
        "wrong": [torch.tensor([one, *all_]) for one, all_ in zip(found.wrong.tolist(), found.wrongs, strict=True)],
    }
    rows = ((image, row) for row, image in enumerate(found.ids.tolist()) if image in ids)
    return {image: {name: part[row] for name, part in parts.items()} for image, row in rows}


def gap(old: dict[str, Tensor], new: dict[str, Tensor], clean: Tensor, vote: Vote) -> float:
    """The largest difference between two findings of one image; infinite where a draw or the vote decides otherwise.

    Logits beside the largest of their class, or the usual size of a class where that is more, so that no class with
    huge logits covers another's; losses beside that usual size; a candidate beside its distance from the clean image.
    """
    if any(old[name].shape != new[name].shape for name in old) or _decisions(old, vote) != _decisions(new, vote):
        return math.inf
    columns = torch.stack([_sizes(old["logits"]), _sizes(new["logits"])]).amax(dim=0)
    usual = columns.median()  # the lower one of two
    logits = [part["logits"].double() / columns.clamp_min(float(usual)).clamp_min(TINY) for part in (old, new)]
    sizes = {"repaired": 1.0, "wrong": 1.0, "loss": max(float(usual), _size(old["loss"], new["loss"]))}
    sizes["x"] = _size(old["x"] - clean, new["x"] - clean)
    return max(_apart(*logits), *(_apart(old[name], new[name]) / max(size, TINY) for name, size in sizes.items()))


def _decisions(found: dict[str, Tensor], vote: Vote) -> tuple[list[int], list[int]]:
    """What every draw says, and every vote."""
    return found["logits"].argmax(dim=-1).tolist(), metrics.decided(found["logits"][None], vote)[0].tolist()


def _sizes(logits: Tensor) -> Tensor:
    """The largest finite size of every class [classes] of logits [draws, classes]."""
    return logits.double().nan_to_num(0.0, 0.0, 0.0).abs().amax(dim=0)


TINY = 1e-30


def _size(*parts: Tensor) -> float:
    """The largest finite number of all."""
    return max(float(part.double().nan_to_num(0.0, 0.0, 0.0).abs().max()) for part in parts if part.numel())


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference; what is not a number on both sides is the same."""
    a, b = a.double().flatten(), b.double().flatten()
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    return float(apart.nan_to_num(math.inf, math.inf).max()) if len(apart) else 0.0


def probes(run: Run, system: System, again: Ledger, chosen: set[int]) -> None:
    """Refuses what the witness did not see so, of the chosen images."""
    kept, found = (_probes(ledger.probes(system.name), chosen) for ledger in (run.ledger, again))
    if kept.keys() != found.keys():
        first = sorted(kept.keys() ^ found.keys())[0]
        raise UserError(f"The ledger differs at {system.name}, {first[0]}, image {first[1]}: its probes are others.")
    sizes = {stage: _margins(again.outcomes(system.name, stage)) for stage in {place[0] for place in found}}
    for place, one in kept.items():
        if not same_probe(one, found[place], sizes[place[0]]):
            raise UserError(f"The ledger differs at {system.name}, {place[0]}, image {place[1]}, in a probe.")


def _margins(found: Outcomes) -> float:
    """The largest lead of a class over the next: what changes of logits are beside, whatever other classes have."""
    top = found.logits.double().nan_to_num(0.0, 0.0, 0.0).topk(2, dim=-1).values
    return max(TINY, float((top[..., 0] - top[..., 1]).max()))


PROBED, LENGTHENED = 0.1, 5
"""By how much another machine's rounding may change a probe, and by what factor, as another length may then be best."""


def same_probe(kept: Probe, found: Probe, size: float) -> bool:
    """Whether two probes of one look say the same; ``size`` is that of changes which matter."""
    old, new = list(kept[3:]), list(found[3:])
    if kept.kind in ("asked", "later"):  # which are measured beside something already
        return alike(old, new, (0.0, TOLERANCE))
    if kept.kind == "across":
        return alike(old, new, (0.0, PROBED))
    scales = [max(abs(value[0]), abs(value[1]), 1e-4 * size) for value in (old, new)]
    if not 1 / LENGTHENED <= scales[0] / scales[1] <= LENGTHENED:
        return False
    shares = ([value / scale for value in one] for one, scale in zip((old, new), scales, strict=True))
    return alike(*shares, (0.0, PROBED))


def _probes(by_stage: dict[str, list[Probe]], chosen: set[int]) -> dict[tuple, Probe]:
    every = ((stage, probe) for stage, some in by_stage.items() for probe in some)
    return {(stage, *probe[:3]): probe for stage, probe in every if probe.image in chosen}


def certificate(run: Run, system: System, again: Ledger) -> None:
    """Refuses a certificate whose numbers are not those that were measured again, or that says something else."""
    kept, found = run.ledger.certificate(system.name), again.certificate(system.name)
    if kept is None and found is None:
        return
    said = results.evidence(run, system.name)
    levels = [_levels(findings(replace(said, certificate=one or {}))) for one in (kept, found)]
    if not alike(kept, found, COARSE) or levels[0] != levels[1]:
        raise UserError(f"The certificate of {system.name} in the ledger is not the one that is measured again.")


def _levels(found: Iterable) -> list[tuple[str, str]]:
    return [(finding.name, finding.level) for finding in found]


def alike(a: Any, b: Any, tolerance: tuple[float, float] = (1e-9, 1e-12)) -> bool:
    """Whether two parts of JSON say the same, up to a share of their numbers and to an amount."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[name], b[name], tolerance) for name in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(alike(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float | int) and not isinstance(b, bool):
        same = a == b or (math.isnan(a) and math.isnan(b))
        return same or math.isclose(a, b, rel_tol=tolerance[0], abs_tol=tolerance[1])
    return type(a) is type(b) and a == b
