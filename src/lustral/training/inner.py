"""What adversarial objectives share: searching inside a training step without touching the network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..core.threat import Threat


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every part gets its own mode back, not only the outermost."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of the sum of a loss per sample [b] at ``at``; parameters collect nothing."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        return torch.autograd.grad(loss(at).sum(), at)[0]


def climb(loss: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor, threat: Threat, steps: int, size: float) -> Tensor:
    """Projected gradient ascent of a loss per sample from x within ``threat`` of x0, without bookkeeping."""
    for _ in range(steps):
        x = threat.project(threat.ascend(x, gradient(loss, x), size), x0).detach()
    return x
