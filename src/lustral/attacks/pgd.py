"""Projected gradient descent (Madry et al. 2018) on any threat, loss and gradient; and the null control beside it."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.noise import Rng
from ..core.threat import Threat
from .gradients import Gradient, Look, Victim
from .losses import Loss, cross_entropy


class Outcome(NamedTuple):
    """Candidates: images, their mean loss on the attack's own noise [b], and the looks that were spent on each [b]."""

    x: Tensor
    loss: Tensor
    looks: Tensor


class Attack(Protocol):
    """A search. ``rng`` is the attack's noise; ``looks`` is the largest number of looks it takes at an image."""

    threat: Threat
    looks: int

    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome: ...


@dataclass
class _Best:
    """The iterate with the largest mean loss so far, per image, and which images are still searched."""

    x: Tensor
    loss: Tensor
    looks: Tensor
    streak: Tensor

    @staticmethod
    def start(x0: Tensor) -> "_Best":
        count = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        return _Best(x0.clone(), x0.new_full((len(x0),), -torch.inf), count, count.clone())

    def see(self, rows: Tensor, x: Tensor, look: Look) -> None:
        """Notes a look at images x that stand at ``rows`` of the batch."""
        better = look.loss > self.loss[rows]
        self.x[rows[better]] = x[better]
        self.loss[rows[better]] = look.loss[better]
        self.looks[rows] += 1
        self.streak[rows] = torch.where(look.wrong == 1, self.streak[rows] + 1, 0)


@dataclass(frozen=True)
class PGD:
    """Steps along the gradient, projected; the iterate with the largest mean loss over its draws is the candidate.

    ``step_size`` defaults to 2.5·eps/steps. An image leaves the batch once all its draws were wrong in ``patience``
    looks in a row (0: never). ``momentum`` is MI-FGSM's decay (Dong et al. 2018) of the L1-normalised gradient.
    """

    threat: Threat
    gradient: Gradient
    loss: Loss = cross_entropy
    steps: int = 20
    step_size: float | None = None
    momentum: float = 0.0
    random_start: bool = True
    restarts: int = 1
    patience: int = 3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.patience < 0 or not 0 <= self.momentum <= 1:
            raise UserError("PGD needs steps ≥ 1, restarts ≥ 1, patience ≥ 0 and momentum in [0, 1].")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"PGD's step_size must be positive, not {self.step_size}.")

    @property
    def looks(self) -> int:
        return self.restarts * (self.steps + 1)

    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        best = _Best.start(x0)
        for restart in range(self.restarts):
            best.streak[~self._decided(best)] = 0
            self._climb(victim, x0, y, rng.fold("restart", restart), best)
        return Outcome(best.x, best.loss, best.looks)

    def _decided(self, best: _Best) -> Tensor:
        return best.streak >= self.patience if self.patience else torch.zeros_like(best.streak, dtype=torch.bool)

    def _climb(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng, best: _Best) -> None:
        size = self.step_size or 2.5 * self.threat.eps / self.steps
        x = self.threat.start(x0, rng.fold("start")) if self.random_start else x0.clone()
        velocity = torch.zeros_like(x0)
        for i in range(self.steps + 1):
            rows = (~self._decided(best)).nonzero()[:, 0]
            if not len(rows):
                return
            at, noise = x[rows], rng.fold("look", i)[rows]
            if i == self.steps:
                best.see(rows, at, self.gradient.look(victim, at, y[rows], self.loss, noise))
                return
            look = self.gradient(victim, at, y[rows], self.loss, noise)
            best.see(rows, at, look)
            grad = look.grad
            if self.momentum:
                mean = grad.abs().flatten(1).mean(dim=1).clamp_min(1e-20).view(-1, 1, 1, 1)
                grad = velocity[rows] = self.momentum * velocity[rows] + grad / mean
            x[rows] = self.threat.project(self.threat.ascend(at, grad, size), x0[rows])


@dataclass(frozen=True)
class RandomSign:
    """The null control: ``looks`` random-sign perturbations of full size, the worst one on its own draws kept.

    It sees as much of the victim's noise as an attack with as many looks, and nothing of its gradient. What it gains
    is what looking often gains.
    """

    threat: Threat
    looks: int = 21
    eot: int = 1
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        if self.looks < 1:
            raise UserError(f"The null control needs at least 1 look, not {self.looks}.")

    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        best = _Best.start(x0)
        rows, gradient = torch.arange(len(x0), device=x0.device), Gradient(None, self.eot)
        for i in range(self.looks):
            noise = rng.fold("look", i)
            direction = noise.fold("sign").sign(x0)
            x = self.threat.project(self.threat.ascend(x0, direction, self.threat.eps), x0)
            best.see(rows, x, gradient.look(victim, x, y, self.loss, noise))
        return Outcome(best.x, best.loss, best.looks)
