"""What training buys: purified accuracy against the FLOPs that training took, from a run over several denoisers.

python -m benchmarks.budget RUN PICTURE.png

RUN is the folder of `lustral evaluate`, for CIFAR-10 the row `budget` of benchmarks.cifar10.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import tables
from benchmarks.store import Table
from lustral.shell import weights


class Point(NamedTuple):
    """A denoiser behind a solver: FLOPs of its training, and its clean accuracy with an interval."""

    denoiser: str
    solver: str
    flops: float
    accuracy: float
    low: float
    high: float


def training_flops(name: str) -> float:
    """Of a plain denoiser: a forward pass, and a backward one for twice the cost, for every image of every batch."""
    model, about = weights.load(name, "denoiser")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *about.image), torch.ones(1) * about.architecture["sigma_max"] / 2)
    return 3.0 * counter.get_total_flops() * about.recipe["steps"] * about.recipe["batch"]


def points(run: Path) -> list[Point]:
    """Every system's point, from the run's options and its results."""
    systems = json.loads((run / "run.json").read_text(encoding="utf-8"))["systems"]
    rows = json.loads((run / "results.json").read_text(encoding="utf-8"))["rows"]
    found = []
    for row in (row for row in rows if row["stage"] == "clean"):
        how = systems[row["system"]]["purification"]
        accuracy = row["accuracy"], row["low"], row["high"]
        found.append(Point(how["denoiser"], how["solver"], training_flops(how["denoiser"]), *accuracy))
    return found


def draw(found: list[Point], path: Path) -> None:
    """A line for each solver."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for solver in dict.fromkeys(p.solver for p in found):
        line = sorted((p for p in found if p.solver == solver), key=lambda p: p.flops)
        spread = [[p.accuracy - p.low for p in line], [p.high - p.accuracy for p in line]]
        axes.errorbar([p.flops for p in line], [p.accuracy for p in line], spread, marker="o", capsize=3, label=solver)
    axes.set(xlabel="training FLOPs", ylabel="clean accuracy once purified", xscale="log")
    flops = sorted({p.flops for p in found})
    axes.set_xticks(flops, [f"{value:.1e}" for value in flops])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    found = points(Path(sys.argv[1]))
    draw(found, Path(sys.argv[2]))
    told = [
        [p.denoiser, p.solver, f"{p.flops:.2g}", f"{tables.percent(p.accuracy)} {tables.interval(p._asdict())}"]
        for p in found
    ]
    print(Table(["denoiser", "solver", "training FLOPs", "clean accuracy, 95 %"], told))
