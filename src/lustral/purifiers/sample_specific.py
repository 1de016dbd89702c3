"""Sample-specific noise (SSNI, Sun et al., ICML 2025): how far an image is diffused depends on its score norm.

The statistic is EPS (Zhang et al., ICML 2023): the norm of the mean score over small times. A law turns it into a time,
with constants taken from clean images (``Reference``). Times are real numbers and differentiable in the image, so an
exact gradient sees through the norm, the law and the time grid; the published attack sees through none of them.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.errors import UserError, unknown
from ..core.noise import Rng, replaying
from ..core.whole import numbers
from ..denoisers.base import Denoiser, column, noise, reach
from ..schedules import VP, Schedule


@dataclass(frozen=True)
class ScoreNorm:
    """e(x) = |mean over ``times`` of score(s(t)·x + noise, t)|₂ [b], on the scale of the schedule ([-1, 1] images).

    The published times are 1/1000 … 20/1000 for CIFAR-10 (50/1000 for ImageNet). Without ``noisy`` the image is only
    scaled; with one time of 20/1000 that is SSNI's single-score variant. One network call per time and sample.
    """

    denoiser: Denoiser = field(metadata={"role": "weights"})
    schedule: Schedule
    times: tuple[float, ...]
    noisy: bool = True

    def __post_init__(self) -> None:
        if not self.times or not all(0 < t <= self.schedule.t_max for t in self.times):
            raise UserError(f"A score norm needs times in (0, {self.schedule.t_max:g}].")
        lowest = float(self.schedule.sigma(torch.tensor(min(self.times), dtype=torch.float64)))
        if lowest < reach(self.denoiser)[0] * (1 - 1e-6):
            raise UserError(
                f"Time {min(self.times):g} means noise sigma={lowest:.3g}, below the {reach(self.denoiser)[0]:.3g} "
                "that this denoiser knows; leave the smallest times out."
            )

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        total = torch.zeros_like(x)
        for i, t in enumerate(self.times):
            total = total + (self._again if x.requires_grad else self._score)(x, t, rng.fold(i))
        return torch.linalg.vector_norm((total / len(self.times)).flatten(1), dim=1)

    def _again(self, x: Tensor, t: float, rng: Rng) -> Tensor:
        """The same, with a graph that is made in the backward pass, from the same noise: one call's at a time."""
        return checkpoint(
            self._score,
            x,
            t,
            rng,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), replaying()),
        )

    def _score(self, x: Tensor, t: float, rng: Rng) -> Tensor:
        time = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
        sigma = self.schedule.sigma(time)
        y = x + column(sigma, x) * rng.normal(x) if self.noisy else x
        # −ε/√(1 − ᾱ), and √(1 − ᾱ) is 2·sigma·s(t).
        return -noise(self.denoiser, y, sigma) / column(2 * sigma * torch.exp(self.schedule.log_scale(time)), x)


class Reference(NamedTuple):
    """Score norms of clean images, of a ``kind`` that ``score_norm`` knows."""

    mean: float
    std: float
    low: float
    high: float
    images: int
    kind: str = "eps"

    @staticmethod
    def of(norms: Tensor, kind: str = "eps") -> "Reference":
        """The statistics of norms [n]."""
        if len(norms) < 2 or not bool(norms.isfinite().all()):
            raise UserError("A reference needs finite score norms of at least two images.")
        norms = norms.double()
        found = norms.mean(), norms.std(), norms.min(), norms.max()
        return Reference(*(value.item() for value in found), len(norms), kind)


@dataclass(frozen=True)
class Logistic:
    """SSNI-N: t = (t₀ + bias)·sigmoid((e − mean)/tau). An average clean image gets half of the largest time."""

    t_star: float
    mean: float
    tau: float
    bias: float = 0.0
    least: float = 1e-3

    def __post_init__(self) -> None:
        numbers(self)
        if self.tau <= 0:
            raise UserError(f"tau must be above 0, not {self.tau:g}; the spread of clean norms is a start.")

    @property
    def t_max(self) -> float:
        return self.t_star + self.bias

    def __call__(self, norm: Tensor) -> Tensor:
        return (self.t_max * torch.sigmoid((norm.double() - self.mean) / self.tau)).clamp(self.least, self.t_max)


@dataclass(frozen=True)
class Linear:
    """SSNI-L: t = t₀·(e − low)/(high − low) + bias, cut to [least, t₀ + bias].

    The extremes are those of the reference alone: the published code takes the batch into account, which makes an
    image's result depend on its neighbours.
    """

    t_star: float
    low: float
    high: float
    bias: float = 0.0
    least: float = 1e-3

    def __post_init__(self) -> None:
        numbers(self)
        if self.high <= self.low:
            raise UserError(f"The largest score norm must be above the smallest, not {self.high:g} and {self.low:g}.")

    @property
    def t_max(self) -> float:
        return self.t_star + self.bias

    def __call__(self, norm: Tensor) -> Tensor:
        share = (norm.double() - self.low) / (self.high - self.low)
        return (self.t_star * share + self.bias).clamp(self.least, self.t_max)


@dataclass(frozen=True)
class Rounded:
    """A law in whole steps of ``dt``, as published: the time is rounded, and t₀ is a step short of t*.

    Nothing flows through the rounding, so the exact gradient of this law is that of a constant time.
    """

    law: Logistic | Linear
    dt: float = 1e-3

    __post_init__ = numbers

    @property
    def t_max(self) -> float:
        return max(self.dt, round(self.law.t_max / self.dt) * self.dt)

    def __call__(self, norm: Tensor) -> Tensor:
        return ((self.law(norm) / self.dt).round() * self.dt).clamp(self.dt, self.t_max)


NORMS = ("eps", "single")


def score_norm(denoiser: Denoiser, kind: str = "eps") -> ScoreNorm:
    """The score norm that references are measured with, on the VP process.

    ``eps`` takes the times 1/1000 … 20/1000 that the denoiser knows; ``single`` one score, at 20/1000, without noise.
    """
    if kind not in NORMS:
        raise unknown("norm", kind, NORMS)
    process, times = VP(), tuple(i / 1000 for i in range(1, 21))
    if kind == "single":
        return ScoreNorm(denoiser, process, times[-1:], noisy=False)
    least = float(process.time(torch.tensor(reach(denoiser)[0], dtype=torch.float64)))
    return ScoreNorm(denoiser, process, tuple(t for t in times if t >= least * (1 - 1e-6)))
