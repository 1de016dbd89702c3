"""For reviewers: compare two runs, run a handful of a run's images again, export a run."""

import json
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ..core.errors import UserError
from ..core.spec import differences
from ..evaluate import metrics, suites
from ..evaluate.protocol import Job
from . import folder, plan, runner
from .files import replacing, write_text
from .ledger import Ledger, Outcomes
from .options import Resources


def compare(a: Path, b: Path) -> list[dict]:
    """Paired tests of every system of one run with every one of another, on the images and stages that both have."""
    plans = [plan.load(place, Resources()) for place in (a, b)]
    with Ledger(a / "ledger.sqlite") as first, Ledger(b / "ledger.sqlite") as second:
        specs = [ledger.spec()["data"]["x"]["sha256"] for ledger in (first, second)]
        lines = [
            line
            for one in _finished(plans[0].jobs, first)
            for other in _finished(plans[1].jobs, second)
            if one.stage.name == other.stage.name
            for line in _paired(one, other, first, second, a, b)
        ]
    if not lines:
        why = "" if specs[0] == specs[1] else " (their images differ, too)"
        raise UserError(f"{a} and {b} have no image in common under a stage of the same name{why}.")
    return lines


def _finished(jobs: list[Job], ledger: Ledger) -> Iterator[Job]:
    return (job for job in jobs if ledger.done(job.system.name, job.stage.name))


def _paired(one: Job, other: Job, first: Ledger, second: Ledger, a: Path, b: Path) -> Iterator[dict]:
    shares = []
    for job, ledger in ((one, first), (other, second)):
        found = ledger.outcomes(job.system.name, job.stage.name)
        right = metrics.voted(found.logits, found.y, job.system.defence.vote)
        shares.append(dict(zip(found.ids.tolist(), right.double().mean(dim=1).tolist(), strict=True)))
    common = sorted(shares[0].keys() & shares[1].keys())
    if not common:
        return
    x, y = (torch.tensor([share[image] for image in common]) for share in shares)
    yield {
        "stage": one.stage.name,
        "a": f"{a.name}: {one.system.name}",
        "b": f"{b.name}: {other.system.name}",
        "images": len(common),
        "accuracy_a": x.mean().item(),
        "accuracy_b": y.mean().item(),
        "difference": list(metrics.bootstrap(x - y)),
        **metrics.mcnemar(x > 0.5, y > 0.5)._asdict(),
    }


def verify(place: Path, images: int, resources: Resources) -> str:
    """Runs some images of a run again, all stages, and holds the result against its ledger."""
    planned = plan.load(place, resources)
    with Ledger(place / "ledger.sqlite") as ledger, tempfile.TemporaryDirectory() as scratch:
        stored = ledger.spec()
        done = sorted(set.intersection(*(ledger.done(s.name, _first(planned, s.name)) for s in planned.systems)))
        if images < 1 or not done:
            raise UserError("There is nothing to verify: ask for at least 1 image of a run that has finished some.")
        chosen = set(secrets.SystemRandom().sample(done, min(images, len(done))))
        facts = {name: stored.get(name) for name in ("micro_batch", "suite")}
        with runner.open_ledger(planned.jobs, planned.data, planned.key, Path(scratch), facts) as again:
            if again.spec() != stored:
                lines = differences(stored, again.spec())
                raise UserError(f"{place} cannot be run again as it was; what differs is {'; '.join(lines[:3])}.")
            runner.execute(planned.jobs, planned.data, planned.key, again, resources, chosen)
            counts = [_same(job, ledger, again, chosen) for job in _finished(planned.jobs, again)]
    draws, worst = sum(n for n, _ in counts), max(gap for _, gap in counts)
    how = "equal to the bit" if worst == 0 else f"equal within {worst:.1e}"
    names = ", ".join(map(str, sorted(chosen)))
    return f"Verified images {names}: {draws:,} draws of {len(counts)} stages are {how}."


def _first(planned: plan.Plan, system: str) -> str:
    return next(job.stage.name for job in planned.jobs if job.system.name == system)


def _same(job: Job, stored: Ledger, again: Ledger, chosen: set[int]) -> tuple[int, float]:
    """The number of draws compared and their largest difference; a difference beyond rounding is an error."""
    old, new = (ledger.outcomes(job.system.name, job.stage.name) for ledger in (stored, again))
    rows = [row for row, image in enumerate(old.ids.tolist()) if image in chosen]
    name = f"{job.system.name}, {job.stage.name}"
    if old.ids[rows].tolist() != new.ids.tolist():
        raise UserError(f"The ledger differs at {name}: it holds other images than the run gives.")
    gaps = {image: _gap(old, row, new, i) for i, (row, image) in enumerate(zip(rows, new.ids.tolist(), strict=True))}
    far = [image for image, gap in gaps.items() if gap > TOLERANCE]
    if far:
        raise UserError(f"The ledger differs at {name}, image {far[0]}: logits by {gaps[far[0]]:.1e}.")
    return new.logits.shape[1] * len(rows), max(gaps.values(), default=0.0)


TOLERANCE = 1e-3


def _gap(old: Outcomes, row: int, new: Outcomes, i: int) -> float:
    if old.logits[row].shape != new.logits[i].shape:
        return float("inf")
    return float((old.logits[row] - new.logits[i]).abs().max())


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
        "number_forward_passes": certificate.get("steps", 0) + 1,
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
        "stochastic": bool(certificate.get("random")),
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
        "version_of_suites": suites.VERSION,
    }
