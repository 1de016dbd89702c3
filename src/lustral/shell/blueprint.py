"""Networks from cards that may lie: what a card claims beyond its file is refused before it costs memory or time."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ..core.errors import UserError
from .cards import Card

TRIED = 32
"""Pixels of a side of the image that a network is tried on, where the card's are not smaller."""


class Unfit(Exception):
    """The card's network is not what its file or its images need; the message says why."""


def build(about: Card, state: Mapping[str, Tensor], make: Callable[[dict[str, Any]], nn.Module]) -> nn.Module:
    """The network that ``make`` builds from the card's description, with its weights, in evaluation mode.

    Refused (``Unfit``) where it is not that of the file, or is no ``kind`` for images of the card's shape.
    """
    with _no_larger_than(state):
        model = make(about.architecture)
        if not isinstance(model, nn.Module):
            raise Unfit("it describes no network")
        model.load_state_dict(state)
    try:
        _try(about, model.eval())
    except (RuntimeError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as e:
        raise Unfit(f"as a {about.kind} for images of shape {about.image} it fails: {e}") from e
    return model


@torch.no_grad()
def _try(about: Card, model: nn.Module) -> None:
    """Asks a network about one grey image, as what it is said to be."""
    channels, *sides = about.image
    x = torch.full((1, channels, *(min(side, TRIED) for side in sides)), 0.5)
    if about.kind == "denoiser":
        if not 0 < getattr(model, "sigma_min", 0) < getattr(model, "sigma_max", 0):
            raise UserError("a denoiser has 0 < sigma_min < sigma_max")
        found = model(x, torch.full((1,), model.sigma_max))
        fits = found.shape == x.shape
    else:
        found = model(x)
        fits = found.dim() == 2 and len(found) == 1
    if not fits:
        raise UserError(f"what it returns has the shape {list(found.shape)}")


@contextmanager
def _no_larger_than(state: Mapping[str, Tensor]) -> Iterator[None]:
    """A block in which no network gets more parameters than there are tensors, or a larger one than all of them."""
    left, numbers = len(state), sum(value.numel() for value in state.values())

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unfit("it describes more layers than the file has")

    class Sized(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            # What is only reserved costs nothing before it is filled, which comes next.
            if function is torch.empty and made.numel() > numbers:
                raise Unfit("it describes more numbers than the file has")
            return made

    counting = register_module_parameter_registration_hook(count)
    try:
        with Sized(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        counting.remove()
