"""Denoising score matching, once: a distribution of noise and a weight.

NCSN's, DDPM's, EDM's and v-prediction's losses are all w(s)·|D(x + sigma·z, sigma) − x|² on [-1, 1], s = 2·sigma.
They differ in what the network predicts (the preconditioning, which belongs to the denoiser), in how sigma is drawn,
and in w:

    noise   w = 1/s²               |ε̂ − z|²         Ho et al. 2020, L_simple; NCSN with λ = sigma² (Song, Ermon 2019)
    edm     w = (s² + d²)/(s·d)²   |F − target|²    Karras et al. 2022, table 1; d the data's spread
    v       w = (1 + s²)/s²        |v̂ − v|²         Salimans and Ho 2022
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from ..core.errors import unknown
from ..core.noise import Rng
from ..denoisers.base import column
from .levels import Levels, LogUniform

Weighting = Literal["noise", "edm", "v"]


@dataclass(frozen=True)
class Denoising:
    """The mean over pixels of a weighted squared error, per sample [b]."""

    levels: Levels = LogUniform()
    weighting: Weighting = "edm"
    sigma_data: float = 0.25
    """Standard deviation of the data on [0, 1] pixels, for ``edm``."""

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise unknown("weighting", self.weighting, get_args(Weighting))

    def sigma(self, x: Tensor, rng: Rng) -> Tensor:
        """A level of noise for every image [b]."""
        return self.levels(rng.fold("level").uniform(x[:, 0, 0, 0]))

    def weight(self, sigma: Tensor) -> Tensor:
        s = 2 * sigma
        if self.weighting == "noise":
            return 1 / s**2
        if self.weighting == "v":
            return (1 + s**2) / s**2
        d = 2 * self.sigma_data
        return (s**2 + d**2) / (s * d) ** 2

    def error(self, model: nn.Module, x: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """The loss of predicting x [b, c, h, w] from ``noisy`` at sigma [b]."""
        difference = 2 * (model(noisy, sigma) - x)
        return self.weight(sigma) * difference.square().flatten(1).mean(dim=1)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        sigma = self.sigma(x, rng)
        return self.error(model, x, x + column(sigma, x) * rng.fold("noise").normal(x), sigma)
