"""What networks return: taken to the tensor that is meant, or refused in one sentence that says what to do."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import memory
from .errors import UserError
from .noise import Key

NAMED = ("logits", "sample")
"""Where the networks of transformers and of diffusers keep what they say."""


def picked(out: Any, fits: Callable[[Tensor], bool] = lambda t: True) -> Any:
    """The tensor that a network's output means: itself, its logits or sample, or its only part that fits.

    Anything else is handed back as it is.
    """
    if isinstance(out, Tensor):
        return out
    for name in NAMED:
        found = out.get(name) if isinstance(out, Mapping) else getattr(out, name, None)
        if isinstance(found, Tensor):
            return found
    if is_dataclass(out) and not isinstance(out, type | Mapping):
        out = tuple(getattr(out, field.name) for field in fields(out))
    parts = out.values() if isinstance(out, Mapping) else out if isinstance(out, tuple | list) else ()
    fitting = [part for part in parts if isinstance(part, Tensor) and fits(part)]
    return fitting[0] if len(fitting) == 1 else out


def tensor(out: Any) -> Tensor:
    """The one tensor of images or logits that a network's output means."""
    found = picked(out, lambda t: t.dim() > 1)
    if not isinstance(found, Tensor):
        raise UserError(f"A network must return one tensor of logits or images, not {_kind(found)}; {_cure(found)}.")
    return found


def logits(out: Any, n: int) -> Tensor:
    """A classifier's output for n images as logits [n, classes].

    ``.logits``, ``["logits"]`` and the only [n, k] among several outputs are taken. One logit z an image, [n, 1], says
    two classes by its sign: the logits become (0, z), so class 1 is said where z > 0.
    """
    found = picked(out, lambda t: t.dim() == 2 and len(t) == n)
    matrix = isinstance(found, Tensor) and found.is_floating_point() and found.dim() == 2
    if not matrix or len(found) != n or not found.shape[1]:
        raise UserError(
            f"A classifier returns logits [{n}, classes] for {n} images, not {_kind(found)}; {_cure(found)}."
        )
    if found.shape[1] == 1:
        return torch.cat([torch.zeros_like(found), found], dim=1)
    return found


def images(out: Any, like: Tensor, who: str) -> Tensor:
    """A network's output as images, as many and as large as ``like`` [b, c, h, w]; ``who`` returned it."""
    if not isinstance(out, Tensor) or out.shape != like.shape or not out.is_floating_point():
        raise UserError(
            f"{who} returns images {list(like.shape)} for images of that shape, not {_kind(out)}; a network that says "
            "noise, a score or more than that becomes a denoiser by lustral.denoisers.preconditioning."
        )
    return out


def cleaned(out: Any, like: Tensor) -> Tensor:
    """What a user's purifier returned for images ``like``, which must be images of the same shape."""
    if not isinstance(out, Tensor) or out.shape != like.shape or not out.is_floating_point():
        raise UserError(
            f"A purifier's function returns images {list(like.shape)} of floats for images of that shape, not "
            f"{_kind(out)}."
        )
    return out


def floating(x: Tensor) -> Tensor:
    """Images as they are; refused where they are no floats, which arithmetic would not show."""
    if not x.is_floating_point():
        raise UserError(f"Images are floats in [0, 1], not {str(x.dtype).removeprefix('torch.')}; divide by 255.")
    return x


def taken(network: object, x: Tensor) -> Tensor:
    """Images as a network takes them: in the precision of its weights; other than floats are refused."""
    floating(x)
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return x if weight is None or not weight.is_floating_point() else x.to(weight.dtype)


def asked(who: str, network: Callable[..., Any], x: Tensor, *others: Tensor) -> Any:
    """What a network returns for images x; it is said in one sentence where it does not take their shape."""
    try:
        return network(x, *others)
    except RuntimeError as e:
        said = str(e).splitlines()[0] if str(e) else ""
        if memory.lacking(e) or not re.search(SHAPES, said):
            raise
        channels = re.search(r"to have (\d+) channels, but got (\d+) channels", said)
        if channels:
            each = max(1, int(channels[2]) // x.shape[1])  # a network that folds patches sees several for one
            raise UserError(other_channels(who, int(channels[1]) // each, x.shape[1])) from e
        raise UserError(f"{who} does not take images of shape {list(x.shape[1:])} (torch: {said}).") from e


def other_channels(who: str, known: int, given: int) -> str:
    """What is said of images with another number of channels than a network's."""
    return f"{who} takes images with {known} channels, but these have {given}."


def probabilities(out: Any, network: Callable[[Tensor], Any], x: Tensor) -> bool:
    """Whether a network seems to say one probability an image: no number below 0 here, of noise and of flat ones."""

    def within(out: Any, n: int) -> bool:
        found = picked(out, lambda t: t.dim() == 2 and len(t) == n)
        single = isinstance(found, Tensor) and found.shape == (n, 1) and found.is_floating_point()
        return single and bool((found >= 0).all())

    if not within(out, len(x)):
        return False
    flat = torch.linspace(0, 1, PROBES, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1).expand(-1, *x.shape[1:])
    noise = Key(0).rng(PROBES).uniform(flat)
    return within(network(torch.cat([flat, noise, (noise > 0.5).to(noise)])), 3 * PROBES)


PROBES = 16


SHAPES = "channels|shape|size|dimension|Size|Dimension"
"""What errors of torch speak of where the shape of images is the matter."""


def _kind(out: Any) -> str:
    if isinstance(out, Tensor):
        return f"{str(out.dtype).removeprefix('torch.')} {list(out.shape)}"
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of {', '.join(map(_kind, out)) or 'nothing'}"
    return type(out).__name__


def _cure(out: Any) -> str:
    """What to do about a classifier's output that is none."""
    if type(out).__module__.partition(".")[0] == "numpy":
        return "return torch tensors, through which attacks have a gradient"
    if not isinstance(out, Tensor):
        return "return the tensor of logits, as in lambda x: net(x)[0]"
    if not out.is_floating_point():
        return "return what labels are taken from, before the argmax"
    if out.dim() == 1:
        return "give the one logit of an image an axis of its own, as in lambda x: net(x)[:, None]"
    if out.dim() > 2 and out.shape[2:].numel() == 1:
        return "leave the last axes out, as in lambda x: net(x).flatten(1)"
    return "return a row of logits for each image, and nothing else"
