"""How an attack differentiates a victim: an adjoint of the purifier, averaged over draws of its noise (EOT).

Expectation over transformation (Athalye et al. 2018): the mean over draws of the gradient of the loss, all images and
draws in one batch. ``exact``, ``bpda``, ``blind`` and ``surrogate`` are the adjoints by their names in the field.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.adjoint import Adjoint, Checkpointed, Identity, Skip, Surrogate
from ..core.errors import UserError
from ..core.noise import Key, Rng
from ..core.purifier import Purifier
from .losses import Loss


class Victim(Protocol):
    """All that an attack may see: logits [n, classes] of one decision per row, differentiable through an adjoint."""

    def logits(self, x: Tensor, rng: Rng, adjoint: Adjoint | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class KnownNoise:
    """A victim whose noise the attacker knows: every look meets the one noise of ``key`` (deterministic white box)."""

    victim: Victim
    key: Key

    def logits(self, x: Tensor, rng: Rng, adjoint: Adjoint | None = None) -> Tensor:
        return self.victim.logits(x, self.key.rng(rng.ids), adjoint)


class Look(NamedTuple):
    """One look at a batch: gradient of the mean loss (None if not asked), mean loss [b], share of wrong draws [b]."""

    grad: Tensor | None
    loss: Tensor
    wrong: Tensor


@dataclass(frozen=True)
class Gradient:
    """An adjoint and the number of draws ``eot`` that are averaged."""

    adjoint: Adjoint
    eot: int = 1

    def __post_init__(self) -> None:
        if self.eot < 1:
            raise UserError(f"EOT needs at least 1 draw, not {self.eot}.")

    def __call__(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        """Gradient [b, c, h, w] of the mean loss over draws, from the same forward pass as the loss and the success."""
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            losses, wrong = self._forward(victim, leaf, y, loss, rng)
            (grad,) = torch.autograd.grad(losses.mean(dim=1).sum(), leaf)
        return Look(grad, losses.detach().mean(dim=1), wrong)

    @torch.no_grad()
    def look(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        """The same without a gradient."""
        losses, wrong = self._forward(victim, x, y, loss, rng)
        return Look(None, losses.mean(dim=1), wrong)

    def _forward(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> tuple[Tensor, Tensor]:
        labels = y.repeat_interleave(self.eot)
        logits = victim.logits(x.repeat_interleave(self.eot, dim=0), rng.repeat(self.eot), self.adjoint)
        wrong = (logits.argmax(dim=1) != labels).view(len(x), self.eot).float().mean(dim=1)
        return loss(logits, labels).view(len(x), self.eot), wrong


def exact(eot: int = 1, budget: int = 0) -> Gradient:
    """The gradient of what runs; ``budget`` bytes of step graphs are kept instead of recomputed."""
    return Gradient(Checkpointed(budget), eot)


def bpda(eot: int = 1) -> Gradient:
    """The purifier runs, its Jacobian is taken as the identity."""
    return Gradient(Identity(), eot)


def blind() -> Gradient:
    """The purifier is left out: the classifier's own gradient."""
    return Gradient(Skip())


def surrogate(purifier: Purifier, eot: int = 1) -> Gradient:
    """Another purifier runs, forward and backward."""
    return Gradient(Surrogate(purifier), eot)
