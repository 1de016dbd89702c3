"""The metrics of other evaluations, recomputed from one run's stored draws and looks, each with its definition."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import metrics
from .metrics import Estimate


class Published(NamedTuple):
    """A metric by its source and name, what it counts, and its value (None where too few draws are stored)."""

    source: str
    name: str
    definition: str
    value: Estimate | None


def published(logits: Tensor, y: Tensor, wrongs: Sequence[np.ndarray]) -> list[Published]:
    """DiffHammer's, DiffBreak's and Fixed-AutoAttack's metrics.

    ``logits`` [n, draws, classes] and labels are the judge's fresh draws on the final candidates; ``wrongs`` holds for
    every image the share of wrong draws at each look of the attack.
    """
    right = metrics.right(logits, y)
    draws = right.shape[1]
    first = right[:, :10]
    enough = draws >= 10
    return [
        Published(
            "DiffHammer",
            "Avg.Rob",
            "mean over images of the share of 10 fresh draws on the final candidate that is right",
            metrics.average(first) if enough else None,
        ),
        Published(
            "DiffHammer",
            "Wor.Rob (10)",
            "share of images with all of 10 fresh draws right; here by the unbiased estimate from all stored draws",
            metrics.worst_of(right, 10) if enough else None,
        ),
        Published(
            "DiffBreak",
            "Wor.Rob",
            "share of images with no wrong draw at any look of the attack, judged while it optimises",
            metrics.looked(wrongs) if len(wrongs) else None,
        ),
        Published(
            "DiffBreak",
            "MV.Rob",
            "share of images with no look at which half of the draws or more are wrong",
            _majority_never_lost(wrongs) if len(wrongs) else None,
        ),
        Published(
            "Fixed-AutoAttack",
            "mean of 20",
            "share of 20 fresh draws on the final candidate that is right",
            metrics.average(right[:, :20]) if draws >= 20 else None,
        ),
        Published(
            "AutoAttack (rand)",
            "one draw",
            "one fresh draw on the final candidate",
            metrics.average(right[:, :1]),
        ),
    ]


def _majority_never_lost(wrongs: Sequence[np.ndarray]) -> Estimate:
    never = torch.tensor([not (w >= 0.5).any() for w in wrongs])
    return metrics.wilson(never.double().mean().item(), len(never))
