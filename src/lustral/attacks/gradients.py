"""How an attack differentiates a victim: an adjoint of the purifier, averaged over draws of its noise (EOT).

Expectation over transformation (Athalye et al. 2018): the mean over draws of the gradient of the loss, all images and
draws in one batch. ``exact``, ``bpda``, ``blind`` and ``surrogate`` are the adjoints by their names in the field.
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core import check
from ..core.adjoint import Adjoint, Checkpointed, Identity, Skip, Surrogate
from ..core.errors import UserError
from ..core.inference import differentiable
from ..core.lanes import in_parts
from ..core.noise import Key, Mixed, Rng
from ..core.purifier import Purifier
from ..core.whole import numbers
from .losses import Loss, truth

NO_GRADIENT = (
    "The victim's output does not depend on its images by autograd, so a search along its gradient goes nowhere and "
    "what it finds is no sign of robustness; attack it by queries (Square, SPSA) or through another gradient (bpda)."
)


class Victim(Protocol):
    """All that an attack may see: logits [n, classes] of one decision per row, differentiable through an adjoint."""

    def logits(self, x: Tensor, rng: Rng, adjoint: Adjoint | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class KnownNoise:
    """A victim whose noise the attacker knows: every look meets the noise of ``key`` (deterministic white box).

    ``part`` is what is known: ``all``, or only what the purifier draws in its ``init`` (a diffusion's forward noise) or
    in its ``step`` s (the reverse process), the other part being fresh (ADDT's three settings).
    """

    victim: Victim
    key: Key
    part: str = "all"

    def __post_init__(self) -> None:
        if self.part not in ("all", "init", "step"):
            raise UserError(f"Known noise is of 'all', 'init' or 'step', not {self.part!r}.")

    def noise(self, rng: Rng) -> Rng | Mixed:
        """What the victim's noise is where the attacker brings ``rng``."""
        known = rng.at(self.key)
        return known if self.part == "all" else Mixed(rng, known, self.part)

    def logits(self, x: Tensor, rng: Rng, adjoint: Adjoint | None = None) -> Tensor:
        return self.victim.logits(x, self.noise(rng), adjoint)

    def label(self, logits: Tensor) -> Tensor:
        return label(self.victim, logits)


class Look(NamedTuple):
    """One look at a batch: gradient of the mean loss (None if not asked), mean loss [b], share of wrong draws [b].

    A draw is wrong where it is what the attacker wants (``fooled``).
    """

    grad: Tensor | None
    loss: Tensor
    wrong: Tensor


def observe(
    victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng, draws: int, adjoint: Adjoint | None
) -> tuple[Tensor, Tensor]:
    """Losses [b, draws] of as many decisions on each image, and the share of them that is wrong [b]."""
    labels = y.repeat_interleave(draws, dim=0)
    logits = victim.logits(x.repeat_interleave(draws, dim=0), rng.repeat(draws), adjoint)
    wrong = fooled(victim, logits, labels).view(len(x), draws).float().mean(dim=1)
    return loss(logits, labels).view(len(x), draws), wrong


def label(victim: Victim, logits: Tensor) -> Tensor:
    """The decisions [n] that logits mean, by the victim's own rule if it has one (-1: it abstains)."""
    return victim.label(logits) if hasattr(victim, "label") else logits.argmax(dim=1)


def fooled(victim: Victim, logits: Tensor, y: Tensor) -> Tensor:
    """Which decisions [n] are what an attacker wants: wrong ones, or where labels are pairs, those for the target.

    As with the judge, logits with a NaN and abstentions never are right, and they are no target either.
    """
    logits = logits.detach()
    check.labels(y, len(logits), logits.shape[1], pairs=True)
    said, lost = label(victim, logits), logits.isnan().any(dim=1)
    if y.dim() == 2 and not isinstance(victim, AnyClass):
        return (said == y[:, 1]) & ~lost
    return (said != truth(y)) | lost


@dataclass(frozen=True, eq=False)
class AnyClass:
    """A victim of which every wrong class is wanted, also where pairs of labels name one to go towards.

    ``Targeted`` shows its victims so: its targets are directions, as AutoAttack's are.
    """

    victim: Victim

    def logits(self, x: Tensor, rng: Rng, adjoint: Adjoint | None = None) -> Tensor:
        return self.victim.logits(x, rng, adjoint)

    def label(self, logits: Tensor) -> Tensor:
        return label(self.victim, logits)


@dataclass(frozen=True)
class Selection:
    """Looks without a gradient, by which a search chooses: ``draws`` decisions on noise that no gradient saw.

    ``adjoint`` None is the victim as it is; ``Skip`` is that of an attacker who does not know of the purifier.
    """

    draws: int = 1
    adjoint: Adjoint | None = None

    def __post_init__(self) -> None:
        numbers(self)
        if self.draws < 1:
            raise UserError(f"Selection needs at least 1 draw, not {self.draws}.")

    @torch.no_grad()
    def __call__(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        losses, wrong = observe(victim, x, y, loss, rng, self.draws, self.adjoint)
        return Look(None, losses.mean(dim=1), wrong)


class Estimator(Protocol):
    """Whatever gives a search its direction."""

    def __call__(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look: ...


@differentiable
def by_halves(look: Estimator, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
    """A look at all images, or where memory does not suffice for that, at halves of them."""
    looks = in_parts(lambda part: look(victim, x[part], y[part], loss, rng[part]), torch.arange(len(x)), len(x))
    return Look(*(torch.cat(found) for found in zip(*(found for _, found in looks), strict=True)))


@dataclass(frozen=True)
class Gradient:
    """An adjoint and the number of draws ``eot`` that are averaged."""

    adjoint: Adjoint | None
    eot: int = 1

    def __post_init__(self) -> None:
        numbers(self)
        if self.eot < 1:
            raise UserError(f"EOT needs at least 1 draw, not {self.eot}.")

    def __call__(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        """Gradient [b, c, h, w] of the mean loss over draws, from the same forward pass as the loss and the success.

        Zero where the victim cuts the graph, of which a warning tells, and the findings of an evaluation.
        """
        return by_halves(self._look, victim, x, y, loss, rng)

    def _look(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            losses, wrong = observe(victim, leaf, y, loss, rng, self.eot, self.adjoint)
            total = losses.mean(dim=1).sum()
            grad = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
        if grad is None:
            warnings.warn(NO_GRADIENT, stacklevel=2)
        return Look(torch.zeros_like(x) if grad is None else grad, losses.detach().mean(dim=1), wrong)


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
