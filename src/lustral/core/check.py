"""What counts as a batch of images, said in one sentence when it is not."""

import torch
from torch import Tensor

from .errors import UserError
from .purifier import Purifier


def images(x: Tensor, name: str = "images", slack: float = 1e-6) -> Tensor:
    """Returns x if it is float [b, c, h, w] in [0, 1], up to ``slack``, without NaN; otherwise says what to do."""
    if not isinstance(x, Tensor):
        raise UserError(f"{name} must be a torch tensor [batch, channels, height, width], not {type(x).__name__}.")
    if x.dim() != 4:
        hint = "; add a batch axis with x[None]" if x.dim() == 3 else ""
        raise UserError(f"{name} must have 4 axes [batch, channels, height, width], not shape {tuple(x.shape)}{hint}.")
    if not x.is_floating_point():
        hint = "; divide 8-bit images by 255" if x.dtype == torch.uint8 else ""
        raise UserError(f"{name} must be floating point in [0, 1], not {str(x.dtype).removeprefix('torch.')}{hint}.")
    if x.numel() and not bool(torch.isfinite(x).all()):
        raise UserError(f"{name} contain NaN or infinite values; clean them before purifying.")
    low, high = (x.min().item(), x.max().item()) if x.numel() else (0.0, 0.0)
    if low < -slack or high > 1 + slack:
        hint = "divide by 255" if high > 2 else "map [-1, 1] by (x + 1) / 2" if low >= -1 - 1e-6 else "rescale them"
        raise UserError(f"{name} must lie in [0, 1] but span [{low:.4g}, {high:.4g}]; {hint}.")
    return x


def purifier(thing: object) -> None:
    """Says what a purifier is where this is none."""
    if not isinstance(thing, Purifier):
        raise UserError(
            f"{type(thing).__name__} is no purifier: it needs n_steps, init, step and readout, or "
            "lustral.from_function(f) around a plain function."
        )
