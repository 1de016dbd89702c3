"""DiffAttack's deviated reconstruction (Kang et al. 2023) as an adjoint: climb the loss and leave the image's path.

A reconstruction in this library's terms: the published loss compares the reverse process with the forward process at
equal times; here it is the distance between what would be read out after every step and the attacked image.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.adjoint import Checkpointed
from ..core.noise import Rng
from ..core.purifier import Purifier
from ..core.whole import numbers


class DeviationState(NamedTuple):
    """The purifier's own state, the attacked image, and the mean squared distance summed over steps [b]."""

    inner: Any
    x: Tensor
    total: Tensor


@dataclass(frozen=True)
class Deviation:
    """A purifier whose readout is (image, mean over steps of the mean squared distance to the input [b])."""

    inner: Purifier

    @property
    def n_steps(self) -> int:
        return self.inner.n_steps

    def init(self, x: Tensor, rng: Rng) -> DeviationState:
        return DeviationState(self.inner.init(x, rng), x, x.flatten(1).sum(dim=1) * 0)

    def step(self, i: int, state: DeviationState, rng: Rng) -> DeviationState:
        inner = self.inner.step(i, state.inner, rng)
        apart = (self.inner.readout(inner) - state.x).square().flatten(1).mean(dim=1)
        return DeviationState(inner, state.x, state.total + apart / self.inner.n_steps)

    def readout(self, state: DeviationState) -> tuple[Tensor, Tensor]:
        return self.inner.readout(state.inner), state.total


@dataclass(frozen=True)
class Deviated:
    """An exact adjoint that adds to the gradient of the loss ``weight`` times that of the deviation.

    The deviation's gradient enters scaled by the length of the incoming gradient, so the weight has no unit.
    """

    weight: float = 1.0
    adjoint: Checkpointed = Checkpointed()

    __post_init__ = numbers

    def __call__(self, purifier: Purifier, x: Tensor, rng: Rng) -> Tensor:
        clean, apart = self.adjoint(Deviation(purifier), x, rng)
        return also(clean, apart, self.weight)


def also(image: Tensor, other: Tensor, weight: float) -> Tensor:
    """The image, whose gradient also flows into ``other`` [b], times ``weight`` and its own length."""
    return _Also.apply(image, other, weight)


class _Also(torch.autograd.Function):
    """Passes an image on; its gradient also flows into a second quantity, [b]."""

    @staticmethod
    def forward(ctx, image: Tensor, other: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return image.view_as(image)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, ctx.weight * torch.linalg.vector_norm(grad.flatten(1), dim=1), None
