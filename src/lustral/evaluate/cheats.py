"""Systems that are built to look robust: what an evaluation must see through, or say that it cannot.

Fronts are plain functions of images (and noise) to put before a classifier; the others wrap one.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..core.noise import Key, Rng, Veiled

Bend = Callable[[Tensor, Tensor], Tensor]
Net = Callable[[Tensor], Tensor]


class _Bent(torch.autograd.Function):
    """The identity, with a backward pass of one's own."""

    @staticmethod
    def forward(ctx, x: Tensor, bend: Bend) -> Tensor:
        ctx.bend = bend
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.bend(grad, *ctx.saved_tensors), None


def bent(bend: Bend) -> Net:
    """Images as they are, whose gradient is what ``bend`` makes of (the gradient, the images)."""
    return lambda x: _Bent.apply(x, bend)


def garbage(grad: Tensor, x: Tensor) -> Tensor:
    """Noise of the gradient's size, the same at every call."""
    return grad.abs().mean() * Key(0).rng(len(grad)).normal(grad)


def garbage32(grad: Tensor, x: Tensor) -> Tensor:
    """Garbage in float32, the truth in float64, where certificates look."""
    return garbage(grad, x) if grad.dtype == torch.float32 else grad


def reversed32(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient with its sign turned, in float32 only."""
    return -grad if grad.dtype == torch.float32 else grad


class After:
    """The truth for so many calls, which certificates may spend, then garbage."""

    def __init__(self, calls: int = 60):
        self.left = calls

    def __call__(self, grad: Tensor, x: Tensor) -> Tensor:
        self.left -= 1
        return grad if self.left >= 0 else garbage(grad, x)


def off(clean: Tensor, x: Tensor) -> Tensor:
    """How far images are from the nearest of the clean ones, in Linf, [b]."""
    return (x[:, None] - clean.to(x)[None]).flatten(2).abs().amax(dim=2).amin(dim=1)


def within(clean: Tensor, eps: float, x: Tensor) -> Tensor:
    """Which images are no clean ones, but within eps of some, [b]."""
    away = off(clean, x)
    return (away > 1e-4) & (away <= eps + 1e-5)


def leaking(net: Net, clean: Tensor, eps: float) -> Net:
    """Honest at clean images and beyond eps of them; between, labels as steps beside a leak that leads nowhere."""

    def logits(x: Tensor) -> Tensor:
        true, between = net(x), within(clean, eps, x.detach())
        leak = x.flatten(1) @ Key(0).rng(x[0].numel()).normal(true.new_empty(x[0].numel(), true.shape[1]))
        steps = 10 * one_hot(true.argmax(dim=1), true.shape[1]).to(true) + 0.1 * leak
        return torch.where(between[:, None], steps, true)

    return logits


def partly(clean: Tensor, eps: float) -> Bend:
    """The truth at clean images; within eps of them all but a few pixels, those that matter least, say nothing."""

    def few(grad: Tensor) -> Tensor:
        size = grad.abs().flatten(1)
        last = torch.where(size == 0, torch.inf, size).topk(8, dim=1, largest=False).indices
        return grad * torch.zeros_like(size).scatter(1, last, 1.0).view_as(grad)

    return lambda grad, x: torch.where(within(clean, eps, x).view(-1, 1, 1, 1), few(grad), grad)


def beyond(clean: Tensor, eps: float) -> Bend:
    """Honest within eps of clean images, garbage beyond."""
    return lambda grad, x: torch.where((off(clean, x) > eps + 1e-5).view(-1, 1, 1, 1), garbage(grad, x), grad)


class Counting:
    """A front that is the identity for so many calls, then inverts images: it remembers that it was asked."""

    def __init__(self, calls: int = 60):
        self.left = calls

    def __call__(self, x: Tensor) -> Tensor:
        self.left -= 1
        return x if self.left >= 0 else 1 - x


def reads_address(x: Tensor, rng: Rng | Veiled, size: float = 0.5) -> Tensor:
    """Noise for whoever is no judge, by the path that noise once had."""
    path = getattr(getattr(rng, "key", None), "path", ())
    return x if "judge" in path else (x + size * rng.normal(x)).clamp(0, 1)


def knows_caller(x: Tensor, rng: Rng | Veiled, size: float = 0.5) -> Tensor:
    """Noise for whoever is no judge, by the functions that called it."""
    judged = any(frame.function == "judge" for frame in inspect.stack(0))
    return x if judged else (x + size * rng.normal(x)).clamp(0, 1)
