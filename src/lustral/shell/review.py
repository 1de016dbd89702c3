"""For reviewers: run a handful of a run's images again, export a run."""

import json
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from ..core.errors import UserError
from ..core.noise import Key
from ..core.spec import differences
from ..evaluate import sizes
from ..evaluate.protocol import Data, Job, decided
from . import build, folder, plan, runner
from .files import replacing, write_text
from .ledger import Ledger
from .options import Resources
from .scratch import unkept


class Runnable(Protocol):
    """What of a plan is needed to run its images again."""

    jobs: list[Job]
    data: Data
    key: Key


Fold = Callable[[Ledger, dict, bool], dict]
"""What a ledger says, beside results that are there, and if the run may have stopped early."""


def verify(place: Path, images: int, resources: Resources) -> str:
    """Holds a run's results against its ledger, and the ledger against some images that it runs again, all stages."""
    build.prepare(resources)
    planned = plan.load(place, resources)
    return hold(place, planned, lambda at, said, stop: plan.fold(planned, at, said["command"], stop), images, resources)


def hold(place: Path, planned: Runnable, fold: Fold, images: int, resources: Resources) -> str:
    """The same for any run that can be run again."""
    with Ledger(place / "ledger.sqlite") as ledger, unkept() as elsewhere:
        stored = ledger.spec()
        settled = [_settled(job, planned.data, ledger) for job in planned.jobs]
        done = sorted(set.intersection(*settled))
        begun = set.union(*(ledger.done(job.system.name, job.stage.name) for job in planned.jobs))
        if (missing := begun.difference(done)) and (place / "results.json").exists():
            raise UserError(f"{place} has results, but its ledger lacks stages of {len(missing)} images; run it again.")
        if images < 1 or not done:
            raise UserError(
                "There is nothing to verify: ask for at least 1 image of a run that has finished all stages of some."
            )
        chosen = set(secrets.SystemRandom().sample(done, min(images, len(done))))
        facts = {name: stored[name] for name in ("micro_batch", "suite") if name in stored}
        with runner.open_ledger(planned.jobs, planned.data, planned.key, elsewhere, facts) as again:
            if again.spec() != stored:
                lines = differences(stored, again.spec())
                raise UserError(f"{place} cannot be run again as it was; what differs is {'; '.join(lines[:3])}.")
            if (place / "results.json").exists():
                _claimed(place, fold, ledger)
            runner.execute(planned.jobs, planned.data, planned.key, again, resources, chosen)
            counts = [_same(job, ledger, again, chosen) for job in planned.jobs]
    draws, worst = sum(n for n, _ in counts), max(gap for _, gap in counts)
    how = "equal to the bit" if worst == 0 else f"equal within {worst:.1e}"
    names = ", ".join(map(str, sorted(chosen)))
    return f"Verified images {names}: candidates, looks and {draws:,} draws of {len(counts)} stages are {how}."


def _claimed(place: Path, fold: Fold, ledger: Ledger) -> None:
    """Refuses results that are not what the ledger says; whether it stopped early is not kept, so both may be."""
    said, _ = folder.read(place)
    for stopped in (False, True):
        found = fold(ledger, said, stopped)
        for allow_red in (False, True):
            shown = json.loads(json.dumps(folder.finite(folder.hold_back(found, allow_red))))
            if _alike(shown, said | {part: shown[part] for part in LOCAL if part in said}):
                return
    raise UserError(
        f"{place / 'results.json'} does not say what its ledger does: one of them was changed, or another version of"
        " Lustral wrote it. `lustral evaluate` writes it anew, without a run; then verify again."
    )


LOCAL = ("versions", "lustral")
"""Parts of the results that say where they were folded, and not what the ledger holds."""


def _alike(a: Any, b: Any) -> bool:
    """Whether two parts of results say the same, up to the rounding of another machine."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float | int) and not isinstance(b, bool):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return type(a) is type(b) and a == b


def _settled(job: Job, data: Data, ledger: Ledger) -> set[int]:
    """The images with which a job has nothing left to do."""
    beyond = set(data.ids.tolist()) - set(data[: job.images].ids.tolist())
    return beyond | ledger.done(job.system.name, job.stage.name) | decided(job, ledger)


def _same(job: Job, stored: Ledger, again: Ledger, chosen: set[int]) -> tuple[int, float]:
    """The number of draws compared and the largest difference of anything; one beyond rounding is an error."""
    place, where = (job.system.name, job.stage.name), f"{job.system.name}, {job.stage.name}"
    ids = [ledger.done(*place) & chosen for ledger in (stored, again)]
    if ids[0] != ids[1]:
        raise UserError(f"The ledger differs at {where}: it holds other images than the run gives.")
    if not ids[0]:
        return 0, 0.0
    old, new = (_by_image(ledger, job) for ledger in (stored, again))
    gaps = {image: _gap(old[image], new[image]) for image in sorted(ids[0])}
    far = [image for image, gap in gaps.items() if not gap <= TOLERANCE]
    if far:
        raise UserError(f"The ledger differs at {where}, image {far[0]}, by {gaps[far[0]]:.1e}.")
    return sum(len(new[image][0]) for image in gaps), max(gaps.values())


TOLERANCE = 1e-3


def _by_image(ledger: Ledger, job: Job) -> dict[int, list[torch.Tensor]]:
    """Everything that a stage has of each image: logits, label, candidate, what the attack saw of it."""
    found = ledger.outcomes(job.system.name, job.stage.name)
    histories = ([torch.tensor(values) for values in part] for part in (found.losses, found.wrongs))
    parts = (found.logits, found.y, found.x, found.distance, found.loss, found.wrong, *histories)
    return {image: [part[row] for part in parts] for row, image in enumerate(found.ids.tolist())}


def _gap(old: list[torch.Tensor], new: list[torch.Tensor]) -> float:
    if any(a.shape != b.shape for a, b in zip(old, new, strict=True)):
        return float("inf")
    pairs = [(a.double().flatten(), b.double().flatten()) for a, b in zip(old, new, strict=True)]
    apart = torch.cat([torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()) for a, b in pairs])
    return float(apart.nan_to_num(float("inf"), float("inf")).max())


def export(place: Path, out: Path) -> Path:
    """Writes a run as Parquet (a row per draw) or as JSON that extends RobustBench's model info."""
    if out.suffix == ".parquet":
        return _parquet(place, out)
    if out.suffix == ".json":
        found, _ = folder.read(place)
        write_text(out, json.dumps([model_info(found, name) for name in _systems(found)], indent=1) + "\n")
        return out
    raise UserError(f"A run is exported as .parquet or .json, not {out.suffix or out.name!r}.")


def _systems(found: dict) -> list[str]:
    return list(dict.fromkeys(row["system"] for row in found["rows"]))


def _parquet(place: Path, out: Path) -> Path:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as e:
        raise UserError("Parquet needs pyarrow: pip install 'lustral[parquet]'.") from e
    with Ledger(place / "ledger.sqlite") as ledger:
        columns, rows = ledger.draws()
        name = ledger.digest()
    if not rows:
        raise UserError(f"{place} has no draws to export yet; let `lustral evaluate` finish some images first.")
    table = pyarrow.table(
        {column: list(values) for column, values in zip(columns, zip(*rows, strict=True), strict=True)}
    )
    table = table.replace_schema_metadata({"lustral.ledger": name})
    with replacing(out) as scratch:
        parquet.write_table(table, scratch, compression="zstd")
    return out


def model_info(found: dict, name: str) -> dict:
    """One system as RobustBench describes a model, and after that what a defence with noise has to say besides.

    ``autoattack_acc`` stays empty: that number is AutoAttack's own, and for a defence with noise it does not exist.
    """
    rows = {row["stage"]: row for row in found["rows"] if row["system"] == name and row["group"] != "eps"}
    last = rows.get("worst") or rows.get("exact")
    clean, null = rows.get("clean"), rows.get("null")

    def percent(row: dict | None) -> str | None:
        return f"{100 * row['accuracy']:.2f}" if row else None

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}.get(found["threat"]["norm"].lower(), found["threat"]["norm"])
    certificate = (found.get("certificates") or {}).get(name) or {}
    main = rows.get("apgd-margin") or rows.get("exact") or {}
    return {
        "link": None,
        "name": name,
        "authors": None,
        "additional_data": None,
        "number_forward_passes": certificate["steps"] + 1 if "steps" in certificate else None,
        "dataset": found["data"]["name"],
        "venue": None,
        "architecture": name,
        "eps": str(found["threat"]["eps"]),
        "clean_acc": percent(clean),
        "reported": percent(last),
        "autoattack_acc": None,
        "threat_model": norm,
        "suite": found.get("suite") or "custom",
        "lustral": found["lustral"],
        "run": found["run"],
        "ledger_digest": found["ledger_digest"],
        "subset_sha": found["data"]["sha256"],
        "images": last and last["images"],
        "stochastic": (found.get("random") or {}).get(name),
        "deployment_rule": last and last["vote"],
        "draws": last and last["draws"],
        "eot": main.get("eot"),
        "looks": main.get("looks"),
        "grad_mode": main.get("gradient"),
        "grad_certificate": certificate or None,
        "null_control": percent(null),
        "ci": last and [round(100 * last["low"], 2), round(100 * last["high"], 2)],
        "risks": (found.get("details") or {}).get(name, {}).get("risks"),
        "forward": sum(row["forward"] for row in rows.values()),
        "backward": sum(row["backward"] for row in rows.values()),
        "findings": {f["name"]: f["level"] for f in (found.get("findings") or {}).get(name, [])},
        "withheld": (found.get("withheld") or {}).get(name),
        "version_of_suites": sizes.VERSION,
    }
