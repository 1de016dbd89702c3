"""Augmentation: functions of images [b, c, h, w] and addressed randomness."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.noise import Rng


def flip(x: Tensor, rng: Rng) -> Tensor:
    """Mirrors every other image, left to right."""
    return torch.where(rng.uniform(x[:, :1, :1, :1]) < 0.5, x, x.flip(3))


def crop(x: Tensor, rng: Rng, pixels: int) -> Tensor:
    """Moves every image by up to ``pixels`` whole pixels in both axes; what comes in from outside is its reflection."""
    b, _, h, w = x.shape
    down, right = (rng.uniform(x.new_empty(b, 2)) * (2 * pixels + 1)).long().unbind(1)
    padded = F.pad(x, [pixels] * 4, mode="reflect")
    rows = (down[:, None] + torch.arange(h, device=x.device))[:, None, :, None]
    columns = (right[:, None] + torch.arange(w, device=x.device))[:, None, None, :]
    samples = torch.arange(b, device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[samples, channels, rows, columns]


def cutout(x: Tensor, rng: Rng, pixels: int) -> Tensor:
    """Greys a square of ``pixels`` around a random centre (DeVries and Taylor 2017)."""
    b, _, h, w = x.shape
    centre = rng.uniform(x.new_empty(b, 2)) * x.new_tensor([h, w])
    rows = (torch.arange(h, device=x.device) + 0.5 - centre[:, :1]).abs() < pixels / 2
    columns = (torch.arange(w, device=x.device) + 0.5 - centre[:, 1:]).abs() < pixels / 2
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.5)


def shift(x: Tensor, rng: Rng, pixels: float) -> Tensor:
    """Moves every image by a random fraction of up to ``pixels`` pixels in both axes, bilinearly."""
    move = (2 * rng.uniform(x.new_empty(len(x), 2)) - 1) * pixels
    size = x.new_tensor([x.shape[3], x.shape[2]])
    theta = torch.eye(2, 3, dtype=x.dtype, device=x.device).repeat(len(x), 1, 1)
    theta[:, :, 2] = 2 * move / size
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
