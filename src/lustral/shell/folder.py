"""The folder of a run: results.json, pictures.npz and report.html beside the ledger; and numbers that are withheld."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from . import stored
from .files import replacing, write_text
from .images.data import read_arrays
from .report import render

SHOWN = ("clean", "null", "blind", "bpda", "unbounded", "black-box", "fixed")  # what shows why a number is withheld


def hold_back(found: dict, allow_red: bool) -> dict:
    """Leaves out the robust accuracy of systems with a red finding, or marks it where ``allow_red``."""
    for row in found["rows"]:
        row["held"] = row["system"] in found["withheld"] and (row["stage"] not in SHOWN or row["group"] == "attack")
    if allow_red:
        return found
    kept = [row for row in found["rows"] if not row["held"]]
    names = set(found["withheld"])
    return found | {
        "rows": kept,
        "ordering": [claim for claim in found["ordering"] if claim["system"] not in names],
        "details": {name: value for name, value in found["details"].items() if name not in names},
        "paired": [test for test in found["paired"] if not names & {test["a"], test["b"]}],
    }


def publish(folder: Path, found: dict, images: dict[str, np.ndarray]) -> None:
    """Writes results.json, pictures.npz and the page of what is written there."""
    text = json.dumps(finite(found), indent=1, ensure_ascii=False)
    write_text(folder / "results.json", text + "\n")
    with replacing(folder / "pictures.npz") as scratch:
        np.savez_compressed(scratch, **images)
    write_text(folder / "report.html", render(json.loads(text), images))


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have: NaN and the infinities."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What ``publish`` wrote, without the page."""
    return stored.results(folder), read_arrays(folder / "pictures.npz")
