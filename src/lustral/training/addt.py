"""ADDT: adversarial denoising diffusion training (Liu et al., ICLR 2025, arXiv 2404.14309).

A denoiser is trained on noise that partly points where a frozen classifier is fooled. In the variance-exploding view
x' = x + sigma·u, and every parametrisation's target is met by predicting x, so the objective is the plain denoising
loss with another noise: u = √(1 − λ²)·z + λ·d.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.noise import Rng
from ..core.threat import Linf
from ..denoisers.base import column
from .denoising import Denoising
from .inner import climb, gradient
from .objectives import cross_entropy


def rank_map(values: Tensor, normal: Tensor) -> Tensor:
    """RBGM: of every plane [h, w], the sorted ``normal`` draws put in the rank order of ``values`` [b, c, h, w].

    The result has exactly the draws' values and exactly the order of ``values``, whose sizes do not matter.
    """
    ranks = values.flatten(2).argsort(dim=2, stable=True).argsort(dim=2)
    return normal.flatten(2).sort(dim=2).values.gather(2, ranks).view_as(values)


@dataclass(frozen=True, eq=False)
class ADDT:
    """The perturbation d is found by CGPO: rank-mapped, accumulated gradients through the one-step clean estimate.

    λ = clip(unit/s, 0, top), s = 2·sigma = √(1−ᾱ)/√ᾱ. Every iteration draws a fresh z, adds the gradient of the
    classifier's loss at D(x + sigma·u, sigma) with respect to d to those before, and replaces d by the rank map of the
    sum. The classifier is frozen; the denoiser keeps its own mode (dropout included) and collects no gradient here.
    """

    base: Denoising
    guide: nn.Module
    iterations: int = 5
    unit: float = 0.03
    top: float = 0.3

    def share(self, sigma: Tensor) -> Tensor:
        """λ for every image [b]."""
        return (self.unit / (2 * sigma)).clamp(0, self.top)

    def mix(self, z: Tensor, d: Tensor, sigma: Tensor) -> Tensor:
        """u = √(1 − λ²)·z + λ·d."""
        share = column(self.share(sigma), z)
        return torch.sqrt(1 - share**2) * z + share * d

    def direction(self, model: nn.Module, x: Tensor, y: Tensor, sigma: Tensor, rng: Rng) -> Tensor:
        """CGPO: the Gaussian-like d [b, c, h, w] that fools the guide."""
        level = column(sigma, x)
        d, total = rng.fold("direction").normal(x), torch.zeros_like(x)
        for i in range(self.iterations):
            z = rng.fold("search", i).normal(x)

            def loss(d: Tensor, z: Tensor = z) -> Tensor:
                clean = model(x + level * self.mix(z, d, sigma), sigma)
                return cross_entropy(self.guide(clean), y)

            total = total + gradient(loss, d)
            d = rank_map(total, rng.fold("rank", i).normal(x))
        return d

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        sigma = self.base.sigma(x, rng)
        d = self.direction(model, x, y, sigma, rng)
        u = self.mix(rng.fold("noise").normal(x), d, sigma)
        return self.base.error(model, x, x + column(sigma, x) * u, sigma)


@dataclass(frozen=True, eq=False)
class ADDTUnmapped:
    """The ablation without rank map: an Linf perturbation of the image rides on the noise, the target is still x.

    x' = x + sigma·(z + min(1/s, 10)·2d): with s above 0.1, which is sigma above 0.05, that is x + d + sigma·z.
    """

    base: Denoising
    guide: nn.Module
    eps: float = 8 / 255
    iterations: int = 5

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        sigma = self.base.sigma(x, rng)
        level = column(sigma, x)
        ride = 2 * level * (0.5 / level).clamp_max(10)
        draws = iter(range(self.iterations))

        def loss(moved: Tensor) -> Tensor:
            noisy = x + level * rng.fold("search", next(draws)).normal(x) + ride * (moved - x)
            return cross_entropy(self.guide(model(noisy, sigma)), y)

        d = climb(loss, x, x, Linf(self.eps), self.iterations, self.eps / 2) - x
        noisy = x + level * rng.fold("noise").normal(x) + ride * d
        return self.base.error(model, x, noisy, sigma)
