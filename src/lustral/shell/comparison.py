"""Two runs side by side: paired tests on the same images, from what their folders say."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..core.errors import UserError
from ..evaluate import metrics
from ..evaluate.protocol import Data
from . import folder, plan, recorded, stored
from .ledger import Ledger
from .options import Resources
from .recorded import Recorded


def runs(a: Path, b: Path) -> list[dict]:
    """Paired tests of every system of one run with every one of another, on the images and stages that both have.

    All of it is read from the ledgers and the results. Images must be the same, to the bit, and stages must have the
    same name and threat; ``unlike`` says in what else the attacks differ. Attacks that images leave are not compared
    (their worst case is), nor are numbers that a red finding withholds.
    """
    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    with Ledger(a / "ledger.sqlite") as first, Ledger(b / "ledger.sqlite") as second:
        sides = [
            Side(name, ledger, stored.results(at))
            for name, ledger, at in zip(names, (first, second), (a, b), strict=True)
        ]
        common = _common_images(*(_images(side.ledger, place) for side, place in zip(sides, (a, b), strict=True)))
        lines = [
            line
            for one in _comparable(sides[0])
            for other in _comparable(sides[1])
            if one.stage == other.stage and one.threat == other.threat
            for line in _paired(sides, (one, other), common)
        ]
    suites_of = [side.found.get("suite") for side in sides]
    if suites_of[0] != suites_of[1]:
        for line in lines:
            line["unlike"].append(" and ".join(f"suite {name}" if name else "no suite" for name in suites_of))
    if not lines:
        raise UserError(f"{a} and {b} have no image in common under a stage of the same name and threat.")
    return lines


class Side(NamedTuple):
    """One of two runs that are compared: what it is called, its ledger and its results."""

    name: str
    ledger: Ledger
    found: dict


def _images(ledger: Ledger, place: Path) -> Data:
    """A run's clean images; where it has no clean stage, those of its data."""
    clean = recorded.clean(ledger)
    return plan.load(place, Resources()).data if clean is None else clean


def _common_images(a: Data, b: Data) -> set[int]:
    """Ids under which both runs have the same image and label."""
    place = {image: row for row, image in enumerate(b.ids.tolist())}
    pairs = [(row, place[image]) for row, image in enumerate(a.ids.tolist()) if image in place]
    if a.x.shape[1:] != b.x.shape[1:]:
        return set()
    return {int(a.ids[i]) for i, j in pairs if torch.equal(a.x[i], b.x[j]) and a.y[i] == b.y[j]}


def _comparable(side: Side) -> Iterator[Recorded]:
    for each in recorded.stages(side.ledger):
        shown = each.system not in side.found["withheld"] or each.stage in folder.SHOWN
        if shown and not each.leave and side.ledger.done(each.system, each.stage):
            yield each


def _paired(sides: Sequence[Side], stages: tuple[Recorded, Recorded], images: set[int]) -> Iterator[dict]:
    x, y = (
        {image: at.decisions for image, at in side.ledger.standing(each.system, each.stage, each.vote).items()}
        for side, each in zip(sides, stages, strict=True)
    )
    ids = sorted(images & x.keys() & y.keys())
    if not ids:
        return
    a, b = (torch.tensor([shares[image] for image in ids], dtype=torch.float64) for shares in (x, y))
    yield {
        "stage": stages[0].stage,
        "a": f"{sides[0].name}: {stages[0].system}",
        "b": f"{sides[1].name}: {stages[1].system}",
        "images": len(ids),
        "accuracy_a": a.mean().item(),
        "accuracy_b": b.mean().item(),
        "difference": list(metrics.bootstrap(a - b)),
        "p_flip": metrics.flipped(a - b),
        "unlike": _unlike(*(_row(side.found, each) for side, each in zip(sides, stages, strict=True))),
        **metrics.mcnemar(a > 0.5, b > 0.5)._asdict(),
    }


def _row(found: dict, of: Recorded) -> dict:
    """What the results say of a stage's attack; nothing where they leave it out."""
    base, at, _ = of.stage.partition("@")
    own = (of.system, base, of.threat["eps"] if at else None)
    return next((row for row in found["rows"] if (row["system"], row["stage"], row["x"]) == own), {})


ALIKE = ("search", "gradient", "loss", "steps", "eot", "selection", "restarts", "targets", "looks")
"""What attacks of the same name may differ in, as rows of results say it."""


def _unlike(one: dict, other: dict) -> list[str]:
    """In what two attacks of the same name differ, to be said beside a comparison."""
    if one.get("search") is None or other.get("search") is None:
        return []
    return [f"{name} {one.get(name)} and {other.get(name)}" for name in ALIKE if one.get(name) != other.get(name)]
