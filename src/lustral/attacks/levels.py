"""Attacks on purifiers that choose noise levels from a statistic of the image (SSNI), as adjoints."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.adjoint import Adjoint, Checkpointed
from ..core.errors import UserError
from ..core.noise import Rng
from ..core.purifier import Purifier
from ..core.whole import numbers
from ..purifiers.rounds import Rounds, Statistic
from .deviated import also


def statistic(purifier: Purifier | None) -> Statistic:
    """The purifier's statistic."""
    if not isinstance(purifier, Rounds) or purifier.measure is None:
        raise UserError("This attack is on fresh noise of levels that depend on the image; wrap the purifier in SSNI.")
    return purifier.measure


@dataclass(frozen=True)
class Detached:
    """A statistic without a gradient."""

    inner: Statistic

    @torch.no_grad()
    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        return self.inner(x.detach(), rng)


@dataclass(frozen=True)
class HeldLevel:
    """Levels follow the image, but no gradient flows through them: the attack that SSNI was published with."""

    adjoint: Adjoint = Checkpointed()

    def __call__(self, purifier: Purifier, x: Tensor, rng: Rng) -> Tensor:
        return self.adjoint(replace(purifier, measure=Detached(statistic(purifier))), x, rng)


@dataclass(frozen=True)
class LoweredNorm:
    """Exact, and the gradient of −log(score norm) beside that of the loss: look clean, be diffused less, stay attacked.

    That gradient enters times ``weight`` and the length of the loss's gradient.
    """

    weight: float = 0.1
    adjoint: Adjoint = Checkpointed()

    __post_init__ = numbers

    def __call__(self, purifier: Purifier, x: Tensor, rng: Rng) -> Tensor:
        quiet = -statistic(purifier)(x, rng.fold("init", "measure")).log()
        return also(self.adjoint(purifier, x, rng), quiet, self.weight)
