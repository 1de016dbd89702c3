"""Detection: how well one number per image tells attacked images from clean ones. Nothing here runs a network."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import UserError
from .metrics import Estimate, bootstrap, share_above, wilson

ALARMS = 0.05
"""The share of false alarms at which a detector is compared."""


class Detection(NamedTuple):
    """The area under the ROC curve, the share caught at ``ALARMS`` false alarms, and the curve's points."""

    auroc: Estimate
    caught: Estimate
    false: list[float]
    true: list[float]


class Seen(NamedTuple):
    """How one stage's candidates of one system were told from the clean images."""

    system: str
    stage: str
    images: int
    found: Detection


def detect(clean: Tensor, attacked: Tensor) -> Detection:
    """Scores [n] of the same images, clean and attacked; a higher score is meant to mean attacked.

    The area is the chance that an attacked image scores above a clean one (Mann–Whitney). Its interval is a bootstrap
    over images of their influence on it, which takes into account that every image is on both sides; where the scores
    lie apart, all influences are alike, and it is Wilson's.
    """
    if clean.shape != attacked.shape or clean.dim() != 1 or len(clean) < 2:
        raise UserError("Detection needs a score for each of at least two images, clean and attacked.")
    if not bool(clean.isfinite().all() and attacked.isfinite().all()):
        raise UserError("Detection needs finite scores; the network gave NaN or infinity.")
    clean, attacked = clean.double(), attacked.double()
    wins = (attacked[:, None] > clean).double() + 0.5 * (attacked[:, None] == clean).double()
    influence = wins.mean(dim=1) + wins.mean(dim=0) - wins.mean()
    apart = float(wins.mean()) in (0.0, 1.0)
    area = wilson(float(wins.mean()), len(clean)) if apart else bootstrap(influence)
    levels = torch.cat([clean, attacked]).unique().flip(0)
    false, true = ((scores[:, None] >= levels).double().mean(dim=0) for scores in (clean, attacked))
    return Detection(
        Estimate(area.value, max(0.0, area.low), min(1.0, area.high)),
        share_above(attacked, clean, 1 - ALARMS),
        [0.0, *false.tolist()],
        [0.0, *true.tolist()],
    )
