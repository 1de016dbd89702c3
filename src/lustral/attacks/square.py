"""Square attack (Andriushchenko et al. 2020): random search by queries, for Linf, on the loss averaged over draws."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.noise import Rng
from ..core.threat import Linf
from ..core.whole import numbers
from .gradients import Selection, Victim
from .losses import Loss, margin
from .search import Best, Outcome, begin, searching


@dataclass(frozen=True)
class Square:
    """Stripes of ±eps first, then squares of ever smaller size, each kept where it raises the mean loss.

    The mean is over the draws of ``select``, the same noise for every query, so that a lucky draw does not pass for
    progress (the paper's proposal for random victims, which AutoAttack leaves out). ``p`` is the initial share of
    pixels in a square.
    """

    threat: Linf
    queries: int = 5000
    loss: Loss = margin
    select: Selection = Selection()
    patience: int = 1
    p: float = 0.8

    def __post_init__(self) -> None:
        numbers(self)
        if not isinstance(self.threat, Linf):
            raise UserError("Square is for Linf here; for L2 and L1 use SPSA, which needs no gradient either.")
        if self.queries < 1 or not 0 < self.p <= 1:
            raise UserError("Square needs at least 1 query and an initial share p in (0, 1].")

    @property
    def looks(self) -> int:
        return self.queries

    @searching
    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        rng = begin(x0, y, rng)
        best = Best(x0, self.patience)
        x, loss = x0.clone(), x0.new_full((len(x0),), -torch.inf)
        for i in range(self.queries):
            rows = best.open()
            if not len(rows):
                break
            noise, side = rng.fold("query", i)[rows], square_side(i, self.queries, self.p, x0.shape[2:])
            moved = stripes(x[rows], noise) if i == 0 else squares(x[rows], noise, side)
            tried = self.threat.project(x[rows] + self.threat.eps * moved, x0[rows])
            look = self.select(victim, tried, y[rows], self.loss, rng.fold("select")[rows])
            best.see(rows, tried, look)
            kept = look.loss > loss[rows]
            x[rows[kept]], loss[rows[kept]] = tried[kept], look.loss[kept].to(loss)
        return best.outcome()


def square_side(i: int, queries: int, p: float, size: tuple[int, int]) -> int:
    """The side of the square at query i: p is halved at fixed points of a run scaled to 10 000 queries."""
    at = int(i / queries * 10_000)
    halvings = sum(at > point for point in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
    share = p / 2**halvings
    return min(max(round(math.sqrt(share * size[0] * size[1])), 1), min(size) - 1 if min(size) > 1 else 1)


def stripes(x: Tensor, rng: Rng) -> Tensor:
    """Columns of random sign, one per column and channel."""
    return rng.sign(x[:, :, :1, :]).expand_as(x)


def squares(x: Tensor, rng: Rng, side: int) -> Tensor:
    """±2 per channel inside a square at a random place, 0 elsewhere: a step across the whole ball, then projected."""
    height, width = x.shape[2:]
    where = rng.uniform(x.new_empty(len(x), 2))
    top, left = ((where[:, k] * (n - side + 1)).floor().view(-1, 1, 1, 1) for k, n in ((0, height), (1, width)))
    row, column = torch.arange(height, device=x.device).view(-1, 1), torch.arange(width, device=x.device)
    inside = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
    return 2 * rng.sign(x[:, :, :1, :1]) * inside
