"""Out of torch's inference mode, in which nothing can be differentiated whatever is asked of autograd."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .noise import Mixed, Rng
from .purifier import alike


def differentiable(function: Callable) -> Callable:
    """The function outside ``torch.inference_mode``, with copies of what among its arguments was made inside of it.

    Whether gradients are wanted stays as it was, so the results are to the bit those of a call outside of that mode.
    """

    @wraps(function)
    def outside(*args: Any, **options: Any) -> Any:
        args, options = plain(args), {name: plain(value) for name, value in options.items()}
        if not torch.is_inference_mode_enabled():
            return _said(function, args, options)
        graded = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(graded):
            return _said(function, args, options)

    return outside


def plain(thing: Any) -> Any:
    """A tensor that a graph may hold: a copy of one that was made in inference mode; likewise in noise and tuples."""
    if isinstance(thing, Tensor):
        return thing.clone() if thing.is_inference() else thing
    if isinstance(thing, Rng):
        return replace(thing, ids=plain(thing.ids), draws=plain(thing.draws))
    if isinstance(thing, Mixed):
        return replace(thing, fresh=plain(thing.fresh), known=plain(thing.known))
    if isinstance(thing, tuple):
        return alike(thing, [plain(part) for part in thing])
    return thing


def _said(function: Callable, args: tuple, options: dict) -> Any:
    """The result, or in one sentence that a network was made where nothing can be differentiated."""
    try:
        return function(*args, **options)
    except RuntimeError as e:
        if "Inference tensors cannot be saved for backward" not in str(e):
            raise
        raise UserError(
            "A network or another part of this victim was made under torch.inference_mode, so it has no gradient; make "
            "it outside of that mode, or attack a copy.deepcopy of it that was made outside."
        ) from e
