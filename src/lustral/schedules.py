"""Noise schedules: the one place where t, ᾱ and sigma meet.

A schedule describes x_t = s(t)·(x₀ + 2·sigma(t)·z) for images x₀ on [-1, 1], so that in the variance-exploding view
y = x_t / s(t), mapped to [0, 1], the noise has standard deviation ``sigma(t)``. For variance-preserving processes
s² = ᾱ and sigma = ½·√((1 − ᾱ)/ᾱ). Times are float64 tensors of any shape, everything is differentiable in t.

``rate`` and ``diffusion`` are the coefficients of the forward SDE dx = −½·rate·x dt + √diffusion dw (x on [-1, 1]).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from .core.errors import UserError
from .core.whole import numbers, whole


class Schedule(Protocol):
    """Maps time to noise; ``t_max`` is the largest time, ``dt`` the natural step."""

    t_max: float
    dt: float

    def log_scale(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...

    def time(self, sigma: Tensor) -> Tensor: ...

    def rate(self, t: Tensor) -> Tensor: ...

    def diffusion(self, t: Tensor) -> Tensor: ...


def _vp_sigma(log_scale: Tensor) -> Tensor:
    """½·√((1 − ᾱ)/ᾱ) from ½·log ᾱ, accurate near t = 0; its gradient at exactly 0 is set to 0 rather than infinity."""
    variance = torch.expm1(-2 * log_scale)
    positive = variance > 0
    return torch.where(positive, 0.5 * torch.sqrt(torch.where(positive, variance, 1.0)), 0.0)


def _vp_log_scale(sigma: Tensor) -> Tensor:
    return -0.5 * torch.log1p(4 * sigma**2)


@dataclass(frozen=True)
class VP:
    """Continuous variance-preserving process with linear β(t) = β₀ + t(β₁ − β₀) on [0, 1] (Song et al., ICLR 2021)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_max: float = 1.0
    dt: float = 1e-3

    __post_init__ = numbers

    def log_scale(self, t: Tensor) -> Tensor:
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def sigma(self, t: Tensor) -> Tensor:
        return _vp_sigma(self.log_scale(t))

    def time(self, sigma: Tensor) -> Tensor:
        """The positive root of ½(β₁ − β₀)t² + β₀t = log(1 + 4·sigma²), in the form that does not cancel."""
        c = torch.log1p(4 * sigma**2)
        return 2 * c / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * c))

    def rate(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.rate(t)


@dataclass(frozen=True)
class DiscreteVP:
    """A variance-preserving process given by its β_1 … β_N, in a sequence, array or tensor.

    t = n/N has ᾱ = Π_{i ≤ n} (1 − β_i), and t = 0 has ᾱ = 1.

    Between the integers log ᾱ is linear, so it is also a continuous process, with piecewise constant β(t) = −N·log(1 −
    β_n). Discrete betas are the ground truth: the linear continuous schedule is a poor copy near t = 0 and for small N.
    """

    betas: tuple[float, ...]
    t_max: float = 1.0

    def __post_init__(self) -> None:
        numbers(self)
        betas = torch.as_tensor(self.betas, dtype=torch.float64)
        if betas.dim() != 1:
            raise UserError(f"betas are a sequence of numbers, not of shape {list(betas.shape)}.")
        object.__setattr__(self, "betas", tuple(betas.tolist()))
        if not self.betas or not all(0 < b < 1 for b in self.betas):
            raise UserError("betas must be a non-empty sequence of numbers strictly between 0 and 1.")

    @staticmethod
    def linear(first: float = 1e-4, last: float = 0.02, n: int = 1000) -> "DiscreteVP":
        """β linear from ``first`` to ``last`` (Ho et al., NeurIPS 2020)."""
        n = whole(n, "n", 1)
        return DiscreteVP(tuple(torch.linspace(first, last, n, dtype=torch.float64).tolist()))

    @staticmethod
    def cosine(n: int = 1000, s: float = 0.008, largest: float = 0.999) -> "DiscreteVP":
        """ᾱ(t) = cos²((t + s)/(1 + s)·π/2), as betas cut at ``largest`` (Nichol and Dhariwal, ICML 2021, eq. 17)."""
        n = whole(n, "n", 1)
        f = [math.cos((i / n + s) / (1 + s) * math.pi / 2) ** 2 for i in range(n + 1)]
        return DiscreteVP(tuple(min(1 - f[i + 1] / f[i], largest) for i in range(n)))

    @property
    def dt(self) -> float:
        return 1 / len(self.betas)

    @cached_property
    def _log_scales(self) -> Tensor:
        """½·log ᾱ at t = 0, 1/N, …, 1."""
        steps = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64))
        return 0.5 * torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])

    def _index(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The interval that t lies in, and the position inside it in [0, 1]; integers n/N are met exactly."""
        n = len(self.betas)
        place = t * n
        nearest = place.round()
        place = torch.where((place - nearest).abs() < 1e-9, nearest + (place - place.detach()), place)
        left = place.detach().ceil().sub(1).clamp(0, n - 1).long()
        return left, place - left

    def log_scale(self, t: Tensor) -> Tensor:
        left, part = self._index(t)
        scales = self._log_scales.to(t.device)
        return scales[left] * (1 - part) + scales[left + 1] * part

    def sigma(self, t: Tensor) -> Tensor:
        return _vp_sigma(self.log_scale(t))

    def time(self, sigma: Tensor) -> Tensor:
        scales = self._log_scales.to(sigma.device)
        value = _vp_log_scale(sigma.double())
        left = (torch.searchsorted(-scales, -value.detach().contiguous()) - 1).clamp(0, len(self.betas) - 1)
        return (left + (value - scales[left]) / (scales[left + 1] - scales[left])) / len(self.betas)

    def rate(self, t: Tensor) -> Tensor:
        left, _ = self._index(t)
        scales = self._log_scales.to(t.device)
        return -2 * len(self.betas) * (scales[left + 1] - scales[left])

    def diffusion(self, t: Tensor) -> Tensor:
        return self.rate(t)


@dataclass(frozen=True)
class VE:
    """Variance-exploding process with geometric sigma(t) = sigma_min·(sigma_max/sigma_min)^t for t in [0, 1].

    Song et al. (ICLR 2021), whose sigmas are on [0, 1] images like ours. At t = 0 some noise, sigma_min, is left.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_max: float = 1.0
    dt: float = 1e-3

    __post_init__ = numbers

    def log_scale(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time(self, sigma: Tensor) -> Tensor:
        return torch.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    def rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return 8 * self.sigma(t) ** 2 * math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM:
    """Time is noise: sigma(t) = t (Karras et al., NeurIPS 2022) on [0, 1] pixels (theirs is twice ours)."""

    t_max: float = 40.0
    dt: float = 0.01

    __post_init__ = numbers

    def log_scale(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, sigma: Tensor) -> Tensor:
        return sigma

    def rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return 8 * t


Schedules = VP | DiscreteVP | VE | EDM
