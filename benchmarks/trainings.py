"""Runs commands as a person would, so that cards say how to make them again; what finished trainings took."""

import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.store import Table

Trainings = Mapping[str, Sequence[str]]
"""What `lustral train` is given for each network: the task, then options, in which FOLDER is where all of them lie."""


def command(*arguments: str) -> None:
    """Runs ``lustral`` and ends where it fails, or is interrupted."""
    try:
        code = subprocess.run([sys.executable, "-m", "lustral", *arguments]).returncode
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from there.")
    if code:
        sys.exit(code)


def train(trainings: Trainings, folder: Path) -> None:
    """Every network that is not there yet; one that was interrupted goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (task, *options) in trainings.items():
        out = folder / f"{name}.safetensors"
        if not out.exists():
            command(
                "train",
                task,
                str(out),
                "--licence=Apache-2.0",
                *(option.replace("FOLDER", str(folder)) for option in options),
            )


def summary(trainings: Trainings, folder: Path) -> Table:
    """Steps, minutes and test measurements of every training, from its log and its card."""
    rows = []
    for name in trainings:
        card = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        with open(folder / f"{name}.csv", encoding="utf-8") as f:
            log = [{column: float(value) for column, value in row.items()} for row in csv.DictReader(f)]
        batch, every = card["recipe"]["batch"], log[0]["step"]
        took = sum(every * batch / row["images_per_second"] for row in log)
        measured = ", ".join(f"{key.removeprefix('test_')} {value:.4g}" for key, value in card["measured"].items())
        rows.append([name, f"{log[-1]['step']:.0f} of {batch}", f"{took / 60:.1f}", measured])
    return Table(["network", "steps", "minutes", "on test images"], rows)
