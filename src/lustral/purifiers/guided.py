"""Guidance of a reverse process by the image that is purified (GDMP), or by an adversarially trained network (AGDM).

A guidance gives ∇ of log p(x | y) at the noisy image y, which ``Diffusion`` adds to the score. Sums are over a sample,
never over the batch, so neighbours change nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.noise import Rng
from ..core.whole import numbers
from ..denoisers.base import column
from ..schedules import Schedule

Likeness = Callable[[Tensor, Tensor], Tensor]


def ascent(value: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """The gradient of Σ value(y) with respect to y, itself differentiable wherever gradients are wanted."""
    wanted = torch.is_grad_enabled() and y.requires_grad
    with torch.enable_grad():
        source = y if wanted else y.detach().requires_grad_()
        (found,) = torch.autograd.grad(value(source).sum(), source, create_graph=wanted)
    return found


@dataclass(frozen=True)
class Towards:
    """GDMP (Wang et al. 2022): the state x_t should look like the input, noised as much (``noised``) or as it is.

    log p = scale(t)·likeness(x_t, input_t), with scale(t) = strength·√(1 − ᾱ)/√ᾱ: the published 3·guide_scale·255/(2·8)
    is the strength there, divided by the 100 images over which the released code took a mean.
    """

    schedule: Schedule
    strength: float
    likeness: Likeness
    noised: bool = True

    def __post_init__(self) -> None:
        numbers(self)
        if self.strength < 0:
            raise UserError(f"The strength of guidance cannot be negative, not {self.strength:g}.")

    def __call__(self, y: Tensor, sigma: Tensor, x: Tensor, rng: Rng) -> Tensor:
        scale = column(torch.exp(self.schedule.log_scale(self.schedule.time(sigma.double()))), y)
        goal = scale * (2 * x - 1 + 2 * column(sigma, y) * rng.normal(x)) if self.noised else 2 * x - 1
        weight = self.strength * 2 * sigma.to(y)
        return ascent(lambda at: weight * self.likeness(scale * (2 * at - 1), goal), y)


def closeness(x: Tensor, goal: Tensor) -> Tensor:
    """−MSE of images [b, c, h, w], for each sample [b]."""
    return -(x - goal).square().flatten(1).mean(dim=1)


def ssim(x: Tensor, goal: Tensor, window: int = 11, spread: float = 1.5) -> Tensor:
    """Structural similarity [b] with a Gaussian window (Wang et al., IEEE TIP 2004), as GDMP computes it.

    Constants are (0.01)² and (0.03)², the window smaller where images are, and borders padded with zeros.
    """
    size = min(window, *(n if n % 2 else n - 1 for n in x.shape[2:]))
    offset = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
    line = torch.exp(-(offset**2) / (2 * spread**2))
    kernel = (line[:, None] * line / line.sum() ** 2).expand(x.shape[1], 1, size, size)

    def mean(v: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(v, kernel, padding=size // 2, groups=v.shape[1])

    a, b = mean(x), mean(goal)
    spread_a, spread_b, both = mean(x * x) - a * a, mean(goal * goal) - b * b, mean(x * goal) - a * b
    c, d = 0.01**2, 0.03**2
    return ((2 * a * b + c) * (2 * both + d) / ((a * a + b * b + c) * (spread_a + spread_b + d))).flatten(1).mean(dim=1)


class Representing(Protocol):
    """A classifier in two parts, as those of ``lustral.classifiers`` are."""

    def features(self, x: Tensor) -> Tensor: ...

    def head(self, features: Tensor) -> Tensor: ...


class Parts(NamedTuple):
    """The two parts as functions, each of which may be wrapped."""

    features: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """A classifier's ``features`` or ``head``, as a function that knows whose it is."""

    network: Representing = field(metadata={"role": "weights"})
    name: str

    def __call__(self, x: Tensor) -> Tensor:
        return getattr(self.network, self.name)(x)


@dataclass(frozen=True)
class Robust:
    """Guidance by a robust classifier (after AGDM, Lin et al. 2024; a reconstruction: no code or scales are public).

    log p = class_weight·log p(c | y) − latent_weight·|f(y) − f(x)|²₂: c is the classifier's verdict on the input, f its
    representation, and both are asked about the noisy image y itself.
    """

    classifier: Representing | Parts = field(metadata={"role": "weights"})
    class_weight: float = 1.0
    latent_weight: float = 1.0

    def __post_init__(self) -> None:
        numbers(self)
        if min(self.class_weight, self.latent_weight) < 0:
            raise UserError("The weights of guidance cannot be negative.")

    def classify(self, x: Tensor) -> Tensor:
        """The guide's own logits."""
        return self.classifier.head(self.classifier.features(x))

    def __call__(self, y: Tensor, sigma: Tensor, x: Tensor, rng: Rng) -> Tensor:
        goal = self.classifier.features(x)
        verdict = self.classifier.head(goal.detach()).argmax(dim=1, keepdim=True)

        def value(at: Tensor) -> Tensor:
            seen = self.classifier.features(at)
            chosen = torch.log_softmax(self.classifier.head(seen), dim=1).gather(1, verdict)[:, 0]
            return self.class_weight * chosen - self.latent_weight * (seen - goal).square().flatten(1).sum(dim=1)

        return ascent(value, y)
