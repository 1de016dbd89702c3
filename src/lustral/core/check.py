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
        raise UserError(
            f"{name} must have 4 axes [batch, channels, height, width], not shape {tuple(x.shape)}{_axes(x)}."
        )
    if x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 4:
        raise UserError(
            f"{name} must be [batch, channels, height, width], not [batch, height, width, channels] as shape "
            f"{tuple(x.shape)} looks; turn them by x.permute(0, 3, 1, 2)."
        )
    if not x.is_floating_point():
        hint = "; divide 8-bit images by 255" if x.dtype == torch.uint8 else ""
        raise UserError(f"{name} must be floating point in [0, 1], not {str(x.dtype).removeprefix('torch.')}{hint}.")
    if x.numel() and not bool(torch.isfinite(x).all()):
        raise UserError(f"{name} contain NaN or infinite values; clean them before purifying.")
    low, high = (x.min().item(), x.max().item()) if x.numel() else (0.0, 0.0)
    if low < -slack or high > 1 + slack:
        raise UserError(f"{name} must lie in [0, 1] but span [{low:.4g}, {high:.4g}]; {_scale(low, high)}.")
    if 0 < high - low < FLAT and abs(low + high - 1) < FLAT:
        raise UserError(
            f"{name} are one flat grey, [{low:.4g}, {high:.4g}], as standardised ones are that were then scaled; undo "
            "whatever scaled them."
        )
    return x


FLAT = 1 / 64
"""Contrast of all images together, around mid-grey, that is none: (x / 255 + 1) / 2 of standardised x spans 0.01."""


def _axes(x: Tensor) -> str:
    """What to do about images without four axes."""
    if x.dim() != 3:
        return ""
    if x.shape[2] in (1, 3, 4) and min(x.shape[:2]) > 4:
        return "; turn one colour image by x.permute(2, 0, 1)[None]"
    return "; add a batch axis with x[None]" if x.shape[0] in (1, 3) else "; add a channel axis with x[:, None]"


def _scale(low: float, high: float) -> str:
    """What to do about images that span [low, high], which is not within [0, 1]."""
    if (low >= 0 and high > 2) or (low >= -0.5 and high > 5):
        white = next((value for value in WHITES if high <= 1.1 * value), WHITES[-1])
        return f"divide by {white}" if high > 100 else "divide by what is white in them (255 of 8 bits, 16 in digits)"
    if low < 0 and max(-low, high) < 0.1:
        return "they are nearly black, as standardised ones are that were divided by 255; undo whatever scaled them"
    if low >= -1 - 1e-6 and high <= 1 + 1e-6:
        return "map [-1, 1] by (x + 1) / 2"
    if low < 0 and max(-low, high) <= 5:
        return (
            "they look standardised by a mean and a standard deviation: undo that, x * std + mean, and let the "
            "classifier do it, as in torch.nn.Sequential(torchvision.transforms.Normalize(mean, std), net)"
        )
    return "rescale them"


WHITES = 255, 1023, 4095, 65535
"""What is white in images of 8, 10, 12 and 16 bits."""


def overflowed(what: str) -> str:
    """What is said where purified images are not finite."""
    return f"Purifying {what} overflowed; choose weaker guidance or smaller steps."


def labels(y: Tensor, n: int, classes: int | None = None, pairs: bool = False) -> Tensor:
    """Returns y if it is an int64 class from 0 on for each of n images, below ``classes`` where their number is known.

    With ``pairs`` it may also be (label, target) pairs [n, 2], of two different classes each.
    """
    kind = str(y.dtype).removeprefix("torch.") if isinstance(y, Tensor) else type(y).__name__
    if kind != "int64":
        hint = "; cast them by y.long()" if kind.startswith(("int", "uint")) else ""
        raise UserError(f"Labels must be a torch tensor, an int64 label for each of the {n} images, not {kind}{hint}.")
    if y.shape != (n,) and not (pairs and y.shape == (n, 2)):
        either = ", or a (label, target) pair" if pairs else ""
        raise UserError(
            f"There must be an int64 label for each of the {n} images{either}, but labels have shape {tuple(y.shape)}."
        )
    if not y.numel():
        return y
    low, high = int(y.min()), int(y.max())
    if low < 0:
        raise UserError(f"Labels count classes from 0, but one is {low}; leave out images that have no label.")
    if classes is not None and high >= classes:
        raise UserError(f"Labels are 0 to {classes - 1} where there are {classes} classes, but one is {high}.")
    if y.dim() == 2 and bool((y[:, 0] == y[:, 1]).any()):
        raise UserError("A target must be another class than the image's label.")
    return y


def purifier(thing: object) -> None:
    """Says what a purifier is where this is none."""
    if not isinstance(thing, Purifier):
        raise UserError(
            f"{type(thing).__name__} is no purifier: it needs n_steps, init, step and readout, or "
            "lustral.from_function(f) around a plain function."
        )
