"""Metrics: folds over stored draws. Nothing here runs a network.

Inputs are logits [n, draws, classes] or their right/wrong table [n, draws] (bool), and labels [n]. Accuracies are
means over images of each image's own estimate. Intervals are Wilson's with n = images, the number of independent
trials: an image's estimate lies in [0, 1], so its variance is at most p(1 − p) and the interval is conservative.
"""

from typing import NamedTuple

import torch
from scipy import special, stats
from torch import Tensor

from ..core.errors import UserError
from ..core.vote import MeanLogits, Vote


class Estimate(NamedTuple):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(value: float, n: int, confidence: float = 0.95) -> Estimate:
    """Wilson's score interval for a share ``value`` of n trials."""
    if n < 1:
        raise UserError("An interval needs at least one image.")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (value * (1 - value) / n + z**2 / (4 * n**2)) ** 0.5
    return Estimate(value, max(0.0, centre - half), min(1.0, centre + half))


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Which draws are right, [n, draws]."""
    return logits.argmax(dim=-1) == y[:, None]


def average(right: Tensor) -> Estimate:
    """The chance that one draw is right: the risk of one submission."""
    return wilson(right.double().mean().item(), len(right))


def worst_of(right: Tensor, m: int) -> Estimate:
    """The chance that m draws are all right: C(n − f, m)/C(n, m) per image with f wrong draws of n.

    The unbiased estimator of minimum variance; it exists only for m ≤ n (DiffHammer, theorem 2).
    """
    n = right.shape[1]
    if not 1 <= m <= n:
        raise UserError(f"worst-of-{m} needs at least {m} judging draws, but {n} are stored; judge with more draws.")
    good = right.sum(dim=1).double().numpy()
    share = special.binom(good, m) / special.binom(n, m)
    return wilson(float(share.mean()), len(right))


def _blocks(logits: Tensor, k: int) -> Tensor:
    """Disjoint blocks of k draws, [n, blocks, k, classes]; draws left over are not used."""
    n, draws, classes = logits.shape
    if not 1 <= k <= draws:
        raise UserError(
            f"A vote of {k} needs at least {k} judging draws, but {draws} are stored; judge with more draws."
        )
    return logits[:, : draws // k * k].reshape(n, draws // k, k, classes)


def voted(logits: Tensor, y: Tensor, vote: Vote) -> Tensor:
    """Which decisions of a vote are right, [n, draws // vote.draws]; an abstention counts as wrong."""
    blocks = _blocks(logits, vote.draws)
    n, count = blocks.shape[:2]
    labels = vote.label(vote.merge(blocks.flatten(0, 1))).view(n, count)
    return labels == y[:, None]


def mean_logit_of(logits: Tensor, y: Tensor, k: int) -> Estimate:
    """Accuracy of the mean logits of k draws."""
    return average(voted(logits, y, MeanLogits(k)))


class Paired(NamedTuple):
    """McNemar's exact test: images that only a, or only b, gets right, and the two-sided p-value."""

    only_a: int
    only_b: int
    p: float


def mcnemar(a: Tensor, b: Tensor) -> Paired:
    """Compares two systems on the same images; a and b [n] say which images each gets right."""
    if a.shape != b.shape:
        raise UserError("A paired test compares the same images; these two have different numbers of them.")
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    total = only_a + only_b
    return Paired(only_a, only_b, float(stats.binomtest(only_a, total).pvalue) if total else 1.0)


def mostly_right(right: Tensor) -> Tensor:
    """Which images are right in more than half of their draws or decisions, [n]: the paired test's verdict."""
    return right.double().mean(dim=1) > 0.5


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """The true logit minus the largest other one, [n, draws]; positive where the draw is right."""
    own = torch.nn.functional.one_hot(y, logits.shape[-1]).bool()[:, None]
    true = (logits * own).sum(dim=-1)
    return true - logits.masked_fill(own, -torch.inf).amax(dim=-1)
