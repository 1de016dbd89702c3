"""Metrics: folds over stored draws. Nothing here runs a network.

Inputs are logits [n, draws, classes] or their right/wrong table [n, draws] (bool), and labels [n]. Accuracies are
means over images of each image's own estimate. Intervals are Wilson's with n = images, the number of independent
trials: an image's estimate lies in [0, 1], so its variance is at most p(1 − p) and the interval is conservative.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from ..core.errors import UserError
from ..core.noise import Key
from ..core.vote import ABSTAIN, Majority, MeanLogits, Single, Vote


class Estimate(NamedTuple):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(value: float, n: int, confidence: float = 0.95) -> Estimate:
    """Wilson's score interval for a share ``value`` of n trials."""
    if n < 1:
        raise UserError("An interval needs at least one image.")
    z = _normal(0.5 + confidence / 2)
    centre = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (value * (1 - value) / n + z**2 / (4 * n**2)) ** 0.5
    return Estimate(value, max(0.0, centre - half), min(1.0, centre + half))


@lru_cache(maxsize=16)
def _normal(share: float) -> float:
    """The number below which a standard normal one is with this probability."""
    return float(stats.norm.ppf(share))


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Which draws are right, [n, draws]; NaN is wrong."""
    return (logits.argmax(dim=-1) == y[:, None]) & ~logits.isnan().any(dim=-1)


def probabilities(logits: Tensor) -> bool:
    """Whether logits [..., classes] look like probabilities."""
    sums = logits.sum(dim=-1)
    return bool(logits.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-4))


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
    """Which decisions of a vote are right, [n, draws // vote.draws]; an abstention or a NaN is wrong."""
    return decided(logits, vote) == y[:, None]


def decided(logits: Tensor, vote: Vote) -> Tensor:
    """The labels that a vote decides, [n, draws // vote.draws]; -1 where it abstains or a logit is NaN."""
    blocks = _blocks(logits, vote.draws)
    labels = vote.label(vote.merge(blocks.flatten(0, 1))).view(blocks.shape[:2])
    return labels.masked_fill(blocks.isnan().flatten(2).any(dim=2), ABSTAIN)


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


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """The true logit minus the largest other one, [n, draws]; positive where the draw is right."""
    own = torch.nn.functional.one_hot(y, logits.shape[-1]).bool()[:, None]
    true = (logits * own).sum(dim=-1)
    return true - logits.masked_fill(own, -torch.inf).amax(dim=-1)


def majority_of(logits: Tensor, y: Tensor, k: int) -> Estimate:
    """Accuracy of the majority of k draws; a tie goes to the tied class with the largest mean probability."""
    return average(voted(logits, y, Majority(k)))


class Risk(NamedTuple):
    """Accuracy under one threat statement: a deployment rule of k draws, against m submissions of the same image.

    m = 1 is an attacker who knows only the distribution of the noise; larger m one who resubmits, sees the verdicts and
    needs one to be wrong.
    """

    rule: str
    k: int
    m: int
    accuracy: Estimate


def risks(logits: Tensor, y: Tensor, ks: Sequence[int] = (5, 10, 20), ms: Sequence[int] = (1, 5, 10, 20)) -> list[Risk]:
    """Every threat statement that the stored draws can answer."""
    draws = logits.shape[1]
    rules: list[tuple[str, Vote]] = [("single", Single())]
    rules += [(name, vote(k)) for k in ks for name, vote in (("mean logits", MeanLogits), ("majority", Majority))]
    found = []
    for name, vote in rules:
        if vote.draws <= draws:
            decisions = voted(logits, y, vote)
            allowed = [m for m in ms if m <= decisions.shape[1]]
            found += [Risk(name, vote.draws, m, worst_of(decisions, m)) for m in allowed]
    return found


RESAMPLES = 2000


def bootstrap(values: Tensor, confidence: float = 0.95) -> Estimate:
    """The mean of per-image values [n] with the percentile interval of a bootstrap over images, always the same one."""
    found = values.double().numpy()
    return _percentiles(float(found.mean()), found[_resampled(len(found))].mean(axis=1), confidence)


def _percentiles(value: float, means: np.ndarray, confidence: float) -> Estimate:
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2]).tolist()
    return Estimate(value, low, high)


def average_by_bootstrap(accuracies: Tensor) -> Estimate:
    """The mean of accuracies per image [n] by ``bootstrap``; Wilson's where all are alike and it had no width."""
    value = accuracies.double().mean().item()
    return wilson(value, len(accuracies)) if len(accuracies.unique()) == 1 else bootstrap(accuracies)


def share_above(scores: Tensor, levels: Tensor, beyond: float) -> Estimate:
    """The share of scores [n] above the ``beyond`` quantile of levels [n] of the same images, with an interval.

    A bootstrap over images, which finds the quantile anew in every sample; Wilson's where all samples agree.
    """
    rank = math.ceil(beyond * (len(levels) - 1)) + 1
    rows = torch.from_numpy(_resampled(len(levels)))
    shares = (scores[rows] > levels[rows].kthvalue(rank, dim=1, keepdim=True).values).double().mean(dim=1)
    value = float((scores > levels.kthvalue(rank).values).double().mean())
    return wilson(value, len(scores)) if bool((shares == value).all()) else _percentiles(value, shares.numpy(), 0.95)


@lru_cache(maxsize=4)
def _resampled(n: int) -> np.ndarray:
    """Rows [RESAMPLES, n] of as many bootstrap samples."""
    if n < 1:
        raise UserError("An interval needs at least one image.")
    u = Key(0, ("bootstrap",)).rng(RESAMPLES).uniform(torch.empty(RESAMPLES, n))
    return (u * n).long().clamp_max(n - 1).numpy()


def sign_flip(values: Tensor) -> float:
    """One-sided p of the mean of paired differences [n] being this low by chance, by flipping their signs at random.

    All 2^n flips for few images, so that three of them can never be significant; RESAMPLES random ones for many.
    """
    found, n = values.double().numpy(), len(values)
    low = _signs(n) @ found <= found.sum() + 1e-9
    return float(low.mean() if n <= 10 else (low.sum() + 1) / (RESAMPLES + 1))


@lru_cache(maxsize=4)
def _signs(n: int) -> np.ndarray:
    """All 2^n rows of n signs for few, RESAMPLES random ones for many."""
    if n <= 10:
        return 1.0 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    return Key(0, ("sign flip",)).rng(RESAMPLES).sign(torch.empty(RESAMPLES, n)).double().numpy()


def flipped(values: Tensor) -> float:
    """Two-sided p of the mean of paired differences [n] being this far from 0 by chance, by flipping their signs."""
    return min(1.0, 2 * min(sign_flip(values), sign_flip(-values)))


def sequence(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of values in [0, 1] with an interval that holds at every sample size at once (anytime-valid).

    The hedged capital process of Waudby-Smith and Ramdas (2024, theorem 3) with its predictable plug-in bets: one may
    look after every image and stop when the interval is tight, without the bias of many looks. The values must come in
    random order, fixed before any was seen. Where they are sorted, by class say, it means nothing; it is all of [0, 1]
    where no mean is possible, or the values' own is not.
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        raise UserError("An interval needs at least one image.")
    alpha, t = 1 - confidence, np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    bets = np.sqrt(2 * np.log(2 / alpha) / (before * t * np.log(t + 1)))
    grid = np.linspace(0, 1, 1001)
    up = np.log1p(np.minimum(bets, 0.5 / np.maximum(grid, 1e-9)[:, None]) * (x - grid[:, None])).cumsum(axis=1)
    down = np.log1p(-np.minimum(bets, 0.5 / np.maximum(1 - grid, 1e-9)[:, None]) * (x - grid[:, None])).cumsum(axis=1)
    possible = (np.maximum(up, down).max(axis=1) + np.log(0.5)) < np.log(1 / alpha)
    inside, step, value = grid[possible], float(grid[1]), float(x.mean())
    if not (len(inside) and inside.min() - step <= value <= inside.max() + step):
        inside = grid
    return Estimate(value, max(0.0, float(inside.min()) - step), min(1.0, float(inside.max()) + step))


def per_class(right: Tensor, y: Tensor) -> dict[int, Estimate]:
    """Average accuracy of the images of every class."""
    return {label: average(right[y == label]) for label in y.unique().tolist()}


def looked(wrongs: Sequence[np.ndarray], looks: int | None = None) -> Estimate:
    """Accuracy where one wrong draw at any of the first ``looks`` looks of the search counts as a success.

    What evaluations report that judge while they optimise; without an attack it falls as well (looks inflation).
    """
    never = torch.tensor([not (w[:looks] > 0).any() for w in wrongs])
    return wilson(never.double().mean().item(), len(never))
