"""What checks look at and what they say."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isnan
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..metrics import bootstrap, sign_flip
from ..origin import Origin
from ..witness import Probe


class Finding(NamedTuple):
    """A check's outcome: green, amber (read its page) or red (the number is withheld), its value, and what it means.

    ``text`` says what was measured, ``so`` what follows where that is not green.
    """

    level: str
    value: float | None
    text: str
    name: str = ""
    so: str = ""


class Seen(NamedTuple):
    """A stage as the ledger has it: images, the share of right decisions [n], and the attack's own view of each image.

    ``wrong`` [n] is the share of wrong draws by which a candidate was chosen; ``losses`` and ``wrongs`` hold all looks.
    ``labels`` counts the different labels among all decisions.
    """

    ids: Tensor
    right: Tensor
    repaired: Tensor
    distance_8bit: Tensor
    wrong: Tensor
    losses: Sequence[np.ndarray]
    wrongs: Sequence[np.ndarray]
    draws: int
    labels: int

    @property
    def accuracy(self) -> float:
        return self.right.double().mean().item()


@dataclass(frozen=True)
class Evidence:
    """All about one system: what it is, its certificate, its stages, and the draws that its gradients average.

    ``probes`` are the witness's, by stage; ``probabilities``: its outputs look like them; ``origin``: what is known of
    its training.
    """

    eps: float
    classes: int
    random: bool
    bare: bool
    eot: int = 1
    certificate: dict = field(default_factory=dict)
    stages: dict[str, Seen] = field(default_factory=dict)
    cascade: tuple[str, ...] = ()
    probes: dict[str, list[Probe]] = field(default_factory=dict)
    probabilities: bool = False
    origin: Origin = Origin()

    def main(self) -> str | None:
        """The strongest white-box stage that all its images faced."""
        return next((name for name in ("apgd-margin", "exact") if name in self.stages), None)


class Gap(NamedTuple):
    """Accuracy under one attack minus that under another, on the images that faced both: 95 % bootstrap interval.

    ``below`` and ``above`` are the chances (sign flips) of a gap this low, or this high, where there is none.
    """

    value: float
    low: float
    high: float
    below: float
    above: float


RED = 0.005  # the chance of a false alarm that a red comparison may have: there are many comparisons


def difference(a: Seen, b: Seen) -> Gap | None:
    """The gap between two stages; None where no image faced both."""
    place = {image: row for row, image in enumerate(b.ids.tolist())}
    rows = [row for row, image in enumerate(a.ids.tolist()) if image in place]
    if not rows:
        return None
    others = torch.tensor([place[image] for image in a.ids[rows].tolist()])
    return gap(a.right[rows].double() - b.right[others].double())


def gap(values: Tensor) -> Gap:
    """The mean of paired differences [n]."""
    return Gap(*bootstrap(values), sign_flip(values), sign_flip(-values))


def stronger(e: Evidence, weak: str, strong: str, what: str) -> Finding | None:
    """Red where the attack that should be weaker leaves less accuracy, and not by chance."""
    if weak not in e.stages or strong not in e.stages:
        return None
    found = difference(e.stages[weak], e.stages[strong])
    if found is None:
        return None
    level = "red" if found.value < 0 and found.below < RED else "amber" if found.value < 0 else "green"
    return Finding(level, found.value, f"{what}: {points(found)} on the images that faced both.")


def points(found: Gap) -> str:
    return f"{100 * found.value:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def must(e: Evidence, name: str, held: str, broken: str) -> Finding | None:
    """Green where a fact of the certificate is true, red where it is not."""
    true = e.certificate.get(name)
    return None if true is None else Finding("green" if true else "red", float(true), held if true else broken)


def measured(e: Evidence, name: str, green: float, red: float, text: str) -> Finding | None:
    """A number of the certificate against its bars; the text has a place for it."""
    value = e.certificate.get(name)
    return None if value is None else bar(value, green, red, text.format(value))


def bar(value: float | None, green: float, red: float, text: str) -> Finding | None:
    """Green up to a value, red from another on (never, if that is infinite), amber between; NaN counts as infinite."""
    if value is None:
        return None
    known = inf if isnan(value) else value
    level = "green" if known <= green else "red" if red < inf and known >= red else "amber"
    return Finding(level, value, text)
