"""A run for other tools: Parquet, or JSON that extends RobustBench's model info."""

import json
from pathlib import Path

from ..core.errors import UserError
from ..evaluate import sizes
from . import folder
from .files import replacing, write_text
from .ledger import Ledger


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
