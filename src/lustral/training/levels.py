"""How much noise a denoiser meets in training: distributions of sigma, each of which may be cut at a purifier's t*.

A level is a function from uniform numbers u [b] in [0, 1) to sigma [b] on [0, 1] images, so that it stays a pure
function of addressed noise.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..schedules import VP, Schedules


class Levels(Protocol):
    """The inverse of a distribution function of sigma."""

    sigma_min: float
    sigma_max: float

    def __call__(self, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LogUniform:
    """ln sigma uniform between two limits: every octave of noise alike."""

    sigma_min: float = 0.01
    sigma_max: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u


@dataclass(frozen=True)
class Geometric:
    """NCSN's ladder (Song and Ermon 2019): ``n`` sigmas in geometric progression, equally likely."""

    sigma_min: float = 0.01
    sigma_max: float = 1.0
    n: int = 32

    def __call__(self, u: Tensor) -> Tensor:
        step = (u * self.n).floor() / max(1, self.n - 1)
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** step


@dataclass(frozen=True)
class LogNormal:
    """EDM's choice (Karras et al. 2022, table 1): ln s is normal for s = 2·sigma on [-1, 1], cut at ``sigma_max``."""

    mean: float = -1.2
    std: float = 1.2
    sigma_max: float = 40.0

    @property
    def sigma_min(self) -> float:
        """A bound that all but one in 30 000 levels keep."""
        return 0.5 * math.exp(self.mean - 4 * self.std)

    def __call__(self, u: Tensor) -> Tensor:
        edge = torch.special.ndtr(torch.tensor((math.log(2 * self.sigma_max) - self.mean) / self.std, dtype=u.dtype))
        normal = torch.special.ndtri((u * edge).clamp_min(1e-7))
        return 0.5 * torch.exp(self.mean + self.std * normal)


@dataclass(frozen=True)
class Times:
    """t uniform in [t_min, t_max] on a schedule (DDPM, Ho et al. 2020; t_max < 1 for a purifier's truncated range)."""

    schedule: Schedules = VP()
    t_min: float = 1e-3
    t_max: float = 1.0

    def _sigma(self, t: float) -> float:
        return self.schedule.sigma(torch.tensor(t, dtype=torch.float64)).item()

    @property
    def sigma_min(self) -> float:
        return self._sigma(self.t_min)

    @property
    def sigma_max(self) -> float:
        return self._sigma(self.t_max)

    def __call__(self, u: Tensor) -> Tensor:
        t = self.t_min + (self.t_max - self.t_min) * u.double()
        return self.schedule.sigma(t).to(u)
