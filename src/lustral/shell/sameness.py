"""Is what a run measured the same when it is measured again? Beside the size of what is compared, not beside 1."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..evaluate.findings import findings
from ..evaluate.protocol import Data, Job, System
from ..evaluate.witness import Probe
from . import results
from .ledger import Ledger
from .run import Run
from .tables import Outcomes

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
    gaps = {image: gap(old[image], new[image], clean[image]) for image in sorted(ids[0])}
    far = [image for image, apart in gaps.items() if not apart <= TOLERANCE]
    if far:
        raise UserError(f"The ledger differs at {where}, image {far[0]}, by {gaps[far[0]]:.1e}.")
    costs = [ledger.cost(*place) for ledger in (stored, again)]
    if costs[1].backward > min(costs[0][1:]):  # whatever went back went forward too, with less memory more often
        raise UserError(f"The ledger differs at {where}: it names fewer network rows than some of its images cost.")
    return sum(len(new[image]["logits"]) for image in gaps), max(gaps.values())


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


def gap(old: dict[str, Tensor], new: dict[str, Tensor], clean: Tensor) -> float:
    """The largest difference between two findings of one image; infinite where a decision differs.

    Logits and losses beside the largest logit, a candidate beside its distance from the clean image.
    """
    if any(old[name].shape != new[name].shape for name in old):
        return math.inf
    if not torch.equal(old["logits"].argmax(dim=-1), new["logits"].argmax(dim=-1)):
        return math.inf
    large, sizes = _size(old["logits"], new["logits"]), {"repaired": 1.0, "wrong": 1.0}
    sizes["logits"] = large
    sizes["loss"] = max(large, _size(old["loss"], new["loss"]))
    sizes["x"] = _size(old["x"] - clean, new["x"] - clean)
    return max(_apart(old[name], new[name]) / max(sizes[name], TINY) for name in old)


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
    sizes = {stage: _size(run.outcomes(job).logits) for stage, job in run.of(system.name).items()}
    for place, one in kept.items():
        size = sizes[place[0]]
        if not alike(_off(one, size), _off(found[place], size), (0.0, PROBED)):
            raise UserError(f"The ledger differs at {system.name}, {place[0]}, image {place[1]}, in a probe.")


PROBED = 0.1
"""By how much another machine's rounding may change how far a prediction is off, of which the better length counts."""


def _probes(by_stage: dict[str, list[Probe]], chosen: set[int]) -> dict[tuple, Probe]:
    every = ((stage, probe) for stage, some in by_stage.items() for probe in some)
    return {(stage, *probe[:3]): probe for stage, probe in every if probe.image in chosen}


def _off(probe: Probe, size: float) -> float:
    """How far what was measured is from what was predicted, beside them; changes of rounding's size count as none."""
    off = probe.measured - probe.predicted
    if probe.kind in ("asked", "later", "across"):  # which are measured beside something already
        return off
    return off / max(abs(probe.measured), abs(probe.predicted), 1e-4 * size)


def certificate(run: Run, system: System, again: Ledger) -> None:
    """Refuses a certificate whose numbers are not those that were measured again, or that says something else."""
    kept, found = run.ledger.certificate(system.name), again.certificate(system.name)
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
