"""What is minimised: functions from (model, x, y, rng) to a loss per sample [b]."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.noise import Rng
from ..denoisers.base import column

Objective = Callable[[nn.Module, Tensor, Tensor, Rng], Tensor]


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of logits, with label smoothing, on images with Gaussian noise of a random level up to ``noise``.

    ``noise`` is 0 for a plain classifier.
    """

    smoothing: float = 0.0
    noise: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        if self.noise:
            level = self.noise * rng.fold("level").uniform(x[:, :1, :1, :1])
            x = (x + level * rng.fold("noise").normal(x)).clamp(0, 1)
        return F.cross_entropy(model(x), y, label_smoothing=self.smoothing, reduction="none")


@dataclass(frozen=True)
class DenoisingEDM:
    """Denoising score matching with EDM's weights (Karras et al. 2022, table 1), sigma log-uniform in a range.

    λ(s)·|D(x + sigma·z, sigma) − x|² with λ = (s² + d²)/(s·d)², s and d (the data's spread) on [-1, 1]. A purifier
    needs no noise beyond its t*, so the range may be truncated there.
    """

    sigma_min: float = 0.005
    sigma_max: float = 1.0
    sigma_data: float = 0.25

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        u = rng.fold("level").uniform(x[:, 0, 0, 0])
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** u
        noisy = x + column(sigma, x) * rng.fold("noise").normal(x)
        s, d = 2 * sigma, 2 * self.sigma_data
        weight = (s**2 + d**2) / (s * d) ** 2
        error = 2 * (model(noisy, sigma) - x)
        return weight * error.square().flatten(1).mean(dim=1)


def shift(x: Tensor, rng: Rng, pixels: float) -> Tensor:
    """Augmentation: moves every image by a random fraction of up to ``pixels`` pixels in both axes, bilinearly."""
    move = (2 * rng.uniform(x.new_empty(len(x), 2)) - 1) * pixels
    size = torch.tensor([x.shape[3], x.shape[2]], dtype=x.dtype)
    theta = torch.eye(2, 3, dtype=x.dtype).repeat(len(x), 1, 1)
    theta[:, :, 2] = 2 * move / size
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
