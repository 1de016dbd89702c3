"""What the rows of `python -m benchmarks.cifar10` say of each other.

python -m benchmarks.cifar10_learned FOLDER

FOLDER is the one of the rows. Differences are between the same images' own shares of right draws, with the percentile
interval of a bootstrap over images. Accuracies are those of the rows, of the deployed decision.
"""

import json
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from benchmarks import store, tables
from benchmarks.store import Table
from lustral.evaluate import metrics
from lustral.shell.ledger import Ledger

EXACT = "exact"


class System(NamedTuple):
    """A system of a row: what was asked for, its results by stage, and which draws were right, [n, draws] by stage."""

    row: str
    name: str
    options: dict
    results: dict[str, dict]
    right: dict[str, Tensor]

    def share(self, stage: str) -> Tensor:
        """The share of right draws of every image [n]."""
        return self.right[stage].double().mean(dim=1)

    def worst(self, stage: str) -> float:
        return metrics.worst_of(self.right[stage], 10).value


def systems(folder: Path) -> Iterator[System]:
    """Every system of every finished row that the exact attack has seen."""
    for place in sorted(path.parent for path in folder.glob("*/results.json")):
        rows = json.loads((place / "results.json").read_text(encoding="utf-8"))["rows"]
        options = json.loads((place / "run.json").read_text(encoding="utf-8"))
        with Ledger(place / "ledger.sqlite") as ledger:
            for name in dict.fromkeys(row["system"] for row in rows if row["stage"] == EXACT):
                mine = {row["stage"]: row for row in rows if row["system"] == name}
                found = {stage: ledger.outcomes(name, stage) for stage in mine}
                right = {stage: metrics.right(seen.logits, seen.y) for stage, seen in found.items()}
                own = {part: given for part, given in (options["systems"] or {}).get(name, {}).items() if given}
                yield System(place.name, name, options | own, mine, right)


def gaps(found: list[System]) -> Table:
    """Every other attack against the exact gradient under fresh noise."""
    lines = []
    for system in found:
        for stage in (stage for stage in system.right if stage not in ("clean", "null", EXACT)):
            value, low, high = (100 * v for v in metrics.bootstrap(system.share(stage) - system.share(EXACT)))
            cells = (tables.percent(system.results[s]["accuracy"]) for s in (stage, EXACT))
            lines.append([system.row, system.name, stage, *cells, f"{value:+.1f}", f"{low:+.1f} to {high:+.1f}"])
    head = ["row", "system", "attack", "accuracy", "exact", "attack − exact, points", "95 %"]
    return Table(head, lines)


def additions(found: list[System]) -> Table:
    """What a purifier adds to a classifier alone, and SSNI to a purifier, within a row and so on the same images."""
    lines = []
    for a, b in permutations(found, 2):
        plain = a.options["purification"]["method"] == "none" and b.options["classification"]["vote"] == "single"
        if a.row == b.row and (plain or b.name == f"{a.name}-ssni"):
            gaps = [[100 * v for v in metrics.bootstrap(b.share(s) - a.share(s))] for s in ("clean", EXACT)]
            cells = (f"{value:+.1f} ({low:+.1f} to {high:+.1f})" for value, low, high in gaps)
            lines.append([a.row, a.name, b.name, *cells, f"{calls(a):.1f} → {calls(b):.1f}"])
    head = ["row", "without", "with", "clean, points (95 %)", "exact, points (95 %)", "calls"]
    return Table(head, lines)


def retries(found: list[System]) -> Table:
    """How much of the fall from one clean draw to the worst of ten attacked ones needs no gradient at all."""
    lines = []
    for system in (system for system in found if "null" in system.right and system.right["clean"].shape[1] >= 10):
        clean = system.results["clean"]["accuracy"]
        worst = {stage: system.worst(stage) for stage in ("clean", "null", EXACT)}
        fall = clean - worst[EXACT]
        cells = [clean, worst["clean"], worst["null"], system.results[EXACT]["accuracy"], worst[EXACT]]
        shares = (f"{(clean - worst[stage]) / fall:.0%}" if fall else "—" for stage in ("clean", "null"))
        lines.append([system.row, system.name, *map(tables.percent, cells), *shares])
    head = ["row", "system", "clean, one draw", "clean, worst of 10", "null control, worst of 10", "exact, one draw"]
    head += ["exact, worst of 10", "of the fall without an attack", "with the null control"]
    return Table(head, lines)


def calls(system: System) -> float:
    """Network calls of one decision about one clean image; 0 without a purifier."""
    if system.options["purification"]["method"] == "none":
        return 0.0
    clean, judge = system.results["clean"], system.options["classification"]
    votes = 1 if judge["vote"] == "single" else judge["draws"]
    return votes * clean["forward"] / clean["images"] / clean["draws"]


def costs(found: list[System]) -> Table:
    """Robust accuracy by the network calls of a decision; those that no cheaper one matches on the same images."""
    shown = [s for s in found if s.results[EXACT]["norm"] == "Linf" and s.options["split"] == "test"]
    lines = []
    for system in sorted(shown, key=lambda s: (_classifier(s), calls(s))):
        row = system.results[EXACT]
        alike = [s for s in shown if (_classifier(s), _images(s)) == (_classifier(system), _images(system))]
        cheaper = [s for s in alike if calls(s) < calls(system)]
        ahead = "yes" if all(row["accuracy"] > s.results[EXACT]["accuracy"] for s in cheaper) else ""
        robust = f"{tables.percent(row['accuracy'])} {tables.interval(row)}"
        clean = tables.percent(system.results["clean"]["accuracy"])
        cells = [_classifier(system), str(_images(system)), f"{calls(system):.1f}", system.row, system.name]
        lines.append([*cells, clean, robust, ahead])
    head = ["classifier", "images", "calls", "row", "system", "clean", "exact, 95 %", "above all cheaper ones"]
    return Table(head, lines)


def _classifier(system: System) -> str:
    return system.options["classification"]["classifier"]


def _images(system: System) -> int:
    return system.results[EXACT]["images"]


if __name__ == "__main__":
    known = list(systems(Path(sys.argv[1])))
    made = {fold.__name__: [fold(known)] for fold in (gaps, additions, retries, costs)}
    print(*map(store.text, made.values()), sep="\n\n")
    store.keep("cifar10-learned", made)
