"""Directions other than one exact gradient: by queries, by published rules, filtered, or by as many draws as needed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..core.adjoint import Adjoint
from ..core.errors import UserError
from ..core.lanes import Lanes
from ..core.noise import Rng
from ..core.purifier import Purifier
from ..core.whole import numbers
from .gradients import Estimator, Gradient, Look, Victim, by_halves, fooled
from .losses import Loss


@dataclass(frozen=True)
class SPSA:
    """A gradient from queries alone (Uesato et al. 2018): Σ (L(x + δv) − L(x − δv))/(2δ)·v over ``samples`` signs v.

    Every query meets noise of its own, as a black box would answer; all are one batch.
    """

    samples: int = 128
    delta: float = 0.01

    def __post_init__(self) -> None:
        numbers(self)
        if self.samples < 1 or not self.delta > 0:
            raise UserError("SPSA needs at least 1 sample and a delta above 0.")

    @torch.no_grad()
    def __call__(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        return by_halves(self._look, victim, x, y, loss, rng)

    def _look(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        n, rows = self.samples, rng.repeat(self.samples)
        v = rows.fold("direction").sign(x.repeat_interleave(n, dim=0))
        base = x.repeat_interleave(n, dim=0)
        ends = torch.stack([base + self.delta * v, base - self.delta * v], dim=1).flatten(0, 1)
        labels = y.repeat_interleave(2 * n, dim=0)
        logits = victim.logits(ends, rng.fold("query").repeat(2 * n))
        wrong = fooled(victim, logits, labels)
        values = loss(logits, labels).view(len(x), n, 2)
        slopes = (values[..., 0] - values[..., 1]) / (2 * self.delta)
        grad = (slopes.view(len(x), n, *[1] * (x.dim() - 1)) * v.view(len(x), n, *x.shape[1:])).mean(dim=1)
        wrong = wrong.view(len(x), -1).float().mean(dim=1)
        return Look(grad, values.flatten(1).mean(dim=1), wrong)


@dataclass(frozen=True)
class SignVoted:
    """The sum of the signs of single-draw gradients: EOT as ADP's released attack has it, which is no mean gradient."""

    gradient: Gradient

    def __call__(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        n = self.gradient.eot
        single = Gradient(self.gradient.adjoint)
        look = single(victim, x.repeat_interleave(n, dim=0), y.repeat_interleave(n, dim=0), loss, rng.repeat(n))
        votes = look.grad.sign().view(len(x), n, *x.shape[1:]).sum(dim=1)
        return Look(votes, *(part.view(len(x), n).mean(dim=1) for part in look[1:]))


Direction = Callable[[Tensor, Rng], Tensor]


@dataclass(frozen=True)
class Joint:
    """Half the sign of a gradient, half the sign of a purifier's own direction (Yoon et al. 2021, table 1, ε = ½).

    ``direction(x, rng)`` is the score at x for the joint attack (score), ``Displacement`` for joint (full).
    """

    gradient: Estimator
    direction: Direction

    def __call__(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        look = self.gradient(victim, x, y, loss, rng)
        with torch.no_grad():
            along = self.direction(x, rng.fold("direction"))
        return look._replace(grad=0.5 * look.grad.sign() + 0.5 * along.sign())


@dataclass(frozen=True)
class Displacement:
    """The mean over draws of purify(x) − x."""

    purifier: Purifier
    eot: int = 1

    __post_init__ = numbers

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        clean = Lanes()(self.purifier, x.repeat_interleave(self.eot, dim=0), rng.repeat(self.eot))
        return clean.view(len(x), self.eot, *x.shape[1:]).mean(dim=1) - x


@dataclass(frozen=True)
class LowPass:
    """A gradient without its high frequencies: only the lowest ``keep`` of each axis of its cosine transform."""

    gradient: Estimator
    keep: float = 0.5

    def __post_init__(self) -> None:
        numbers(self)
        if not 0 < self.keep <= 1:
            raise UserError(f"A low-pass filter keeps a share in (0, 1] of the frequencies, not {self.keep}.")

    def __call__(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        look = self.gradient(victim, x, y, loss, rng)
        rows, columns = (low_pass(n, self.keep).to(x) for n in x.shape[2:])
        return look._replace(grad=rows @ look.grad @ columns)


def low_pass(n: int, keep: float) -> Tensor:
    """The projection [n, n] onto the lowest frequencies of the orthonormal DCT-II."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(torch.pi * k * (i + 0.5) / n) * (2 / n) ** 0.5
    basis[0] /= 2**0.5
    low = basis[: max(1, round(keep * n))]
    return low.T @ low


@dataclass(frozen=True)
class Growing:
    """EOT that doubles, image by image, until the gradients of its two halves agree to a cosine of ``agreement``.

    Starts at ``least`` draws and stops at ``most``; every draw counts in the mean.
    """

    adjoint: Adjoint
    least: int = 4
    most: int = 64
    agreement: float = 0.5

    def __post_init__(self) -> None:
        numbers(self)
        if not (2 <= self.least <= self.most and self.least % 2 == 0):
            raise UserError("Growing EOT needs an even least number of draws, from 2 to the largest number.")

    def __call__(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        half = Gradient(self.adjoint, self.least // 2)
        first, second = (half(victim, x, y, loss, rng.fold("half", k)) for k in (0, 1))
        found, draws = _mean(first, second), self.least
        rows = _apart(first, second, self.agreement)
        while len(rows) and 2 * draws <= self.most:
            more = Gradient(self.adjoint, draws)(victim, x[rows], y[rows], loss, rng.fold("double", draws)[rows])
            before = Look(*(part[rows] for part in found))
            merged, draws = _mean(before, more), 2 * draws
            for whole, part in zip(found, merged, strict=True):
                whole[rows] = part
            rows = rows[_apart(before, more, self.agreement)]
        return found


def _mean(a: Look, b: Look) -> Look:
    return Look(*((one + other) / 2 for one, other in zip(a, b, strict=True)))


def _apart(a: Look, b: Look, agreement: float) -> Tensor:
    return (cosine_similarity(a.grad.flatten(1), b.grad.flatten(1)) < agreement).nonzero()[:, 0]
