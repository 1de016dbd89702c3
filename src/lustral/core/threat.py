"""Threat models: a norm ball around the clean image, inside the pixel range [0, 1].

Each one knows how to start at random, climb along a gradient, project, and measure. Images are [b, c, h, w] in [0, 1];
eps and distances are in the same units; a step ``size`` is the length of one step in the threat's norm.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import UserError
from .noise import Rng
from .whole import numbers


class Threat(Protocol):
    """What the attacker may do."""

    eps: float

    def start(self, x0: Tensor, rng: Rng) -> Tensor: ...

    def ascend(self, x: Tensor, grad: Tensor, size: float) -> Tensor: ...

    def project(self, x: Tensor, x0: Tensor) -> Tensor: ...

    def distance(self, x: Tensor, x0: Tensor) -> Tensor: ...


def _number(eps: Any, largest: float, name: str) -> float:
    """An eps as a plain number, of Python, NumPy or torch; what cannot be right is refused."""
    try:
        given, eps = eps, math.nan if isinstance(eps, str | bool) else float(eps)
    except (TypeError, ValueError, RuntimeError):
        given, eps = eps, math.nan
    if not math.isfinite(eps):
        raise UserError(f"{name} eps must be a finite number, in units of images in [0, 1], not {given!r}.")
    if not 0 <= eps <= largest:
        hint = f"; {eps:g}/255 is {eps / 255:.6f}" if 2 <= eps <= 255 and largest == 1.0 else ""
        room = "be at least 0" if largest == math.inf else f"lie in [0, {largest:g}]"
        raise UserError(f"{name} eps must {room}, in units of images in [0, 1], not {eps}{hint}.")
    return eps


def _norm(d: Tensor, p: float) -> Tensor:
    """The p-norm of each image, shaped to broadcast against images."""
    flat = torch.linalg.vector_norm(d.flatten(1), p, dim=1)
    return flat.view(-1, *[1] * (d.dim() - 1))


@dataclass(frozen=True)
class Linf:
    """Every pixel may change by at most eps."""

    eps: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", _number(self.eps, 1.0, "Linf"))

    def start(self, x0: Tensor, rng: Rng) -> Tensor:
        """Uniform in the ball."""
        return self.project(x0 + self.eps * (2 * rng.uniform(x0) - 1), x0)

    def ascend(self, x: Tensor, grad: Tensor, size: float) -> Tensor:
        return x + size * grad.sign()

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        return torch.clamp(torch.minimum(torch.maximum(x, x0 - self.eps), x0 + self.eps), 0.0, 1.0)

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        return (x - x0).flatten(1).abs().amax(dim=1)


@dataclass(frozen=True)
class L2:
    """The Euclidean length of the change is at most eps."""

    eps: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", _number(self.eps, math.inf, "L2"))

    def start(self, x0: Tensor, rng: Rng) -> Tensor:
        """Uniform in the ball: a Gaussian direction and a radius eps·u^(1/d)."""
        z = rng.normal(x0)
        d = x0.shape[1:].numel()
        radius = rng.uniform(x0[:, :1, :1, :1]) ** (1 / d)
        return self.project(x0 + self.eps * radius * z / _norm(z, 2).clamp_min(1e-12), x0)

    def ascend(self, x: Tensor, grad: Tensor, size: float) -> Tensor:
        grad = grad / _norm(grad, math.inf).clamp_min(torch.finfo(grad.dtype).tiny)  # squares of 1e-20 vanish
        return x + size * grad / _norm(grad, 2).clamp_min(1e-12)

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        """To the ball, then to the pixel range, which keeps it in the ball because x0 lies in the range."""
        d = x - x0
        scale = (self.eps / _norm(d, 2).clamp_min(1e-12)).clamp_max(1.0)
        return torch.clamp(x0 + d * scale, 0.0, 1.0)

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        return _norm(x - x0, 2).flatten()


@dataclass(frozen=True)
class L1:
    """The sum of the absolute changes is at most eps.

    Steps are the sparse steepest ascent of SLIDE (Tramèr and Boneh 2019): the ``share`` of the pixels with the largest
    gradient that can still move in its direction. Projection is exact onto ball ∩ range (Croce and Hein 2021, prop.
    3.1): the threshold is found by bisection, which stays differentiable-free and batched.
    """

    eps: float
    share: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", _number(self.eps, math.inf, "L1"))
        numbers(self)

    def start(self, x0: Tensor, rng: Rng) -> Tensor:
        """Uniform on the ball's surface before projection: Laplace noise scaled to length eps (L1 direction)."""
        u = rng.uniform(x0) - 0.5
        z = -u.sign() * torch.log1p(-(2 * u.abs()).clamp_max(1 - 2**-24))  # a draw of exactly 0 has no logarithm
        return self.project(x0 + self.eps * z / _norm(z, 1).clamp_min(1e-12), x0)

    def ascend(self, x: Tensor, grad: Tensor, size: float) -> Tensor:
        free = ((grad > 0) & (x < 1)) | ((grad < 0) & (x > 0))
        flat = (grad.abs() * free).flatten(1)
        k = max(1, math.ceil(self.share * flat.shape[1]))
        top = flat >= flat.topk(k, dim=1).values[:, -1:].clamp_min(torch.finfo(flat.dtype).tiny)
        step = (top * grad.flatten(1).sign()).view_as(x)
        return x + size * step / _norm(step, 1).clamp_min(1.0)

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        d = (x - x0).flatten(1)
        base = x0.flatten(1)
        room = torch.where(d >= 0, 1 - base, base)  # how far each pixel may move in its direction

        def shrunk(threshold: Tensor) -> Tensor:
            return torch.minimum((d.abs() - threshold).clamp_min(0), room)

        low = torch.zeros_like(d[:, :1])
        high = d.abs().amax(dim=1, keepdim=True)
        for _ in range(50):
            middle = (low + high) / 2
            above = shrunk(middle).sum(dim=1, keepdim=True) > self.eps
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        inside = shrunk(torch.zeros_like(low)).sum(dim=1, keepdim=True) <= self.eps
        moved = d.sign() * shrunk(torch.where(inside, torch.zeros_like(high), high))
        return torch.clamp(base + moved, 0.0, 1.0).view_as(x)

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        return _norm(x - x0, 1).flatten()
