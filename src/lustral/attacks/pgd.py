"""Projected gradient descent (Madry et al. 2018) on any threat, loss and gradient; and the null control beside it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.noise import Rng
from ..core.threat import Threat
from ..core.whole import numbers
from .gradients import Estimator, Selection, Victim
from .losses import Loss, cross_entropy
from .search import Best, Outcome, begin, searching, usable


@dataclass(frozen=True)
class PGD:
    """Steps along the gradient, projected; the iterate that does best is the candidate.

    Iterates are compared on the noise of ``select``, which is the same for all of them and no gradient saw; without it
    on the noise of their own gradients (right for a victim without noise, where it saves a look). ``step_size``
    defaults to 2.5·eps/steps. An image leaves the batch once all its draws were wrong in ``patience`` looks in a row
    (0: never). ``momentum`` is MI-FGSM's decay (Dong et al. 2018) of the L1-normalised gradient.
    """

    threat: Threat
    gradient: Estimator
    loss: Loss = cross_entropy
    steps: int = 20
    step_size: float | None = None
    momentum: float = 0.0
    random_start: bool = True
    patience: int = 3
    select: Selection | None = None

    def __post_init__(self) -> None:
        numbers(self)
        if self.steps < 1 or self.patience < 0 or not 0 <= self.momentum <= 1:
            raise UserError("PGD needs steps ≥ 1, patience ≥ 0 and momentum in [0, 1].")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"PGD's step_size must be positive, not {self.step_size}.")

    @property
    def looks(self) -> int:
        return self.steps + (self.select is None)

    @searching
    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        rng = begin(x0, y, rng)
        size = self.step_size or 2.5 * self.threat.eps / self.steps
        x = self.threat.start(x0, rng.fold("start")) if self.random_start else x0.clone()
        best, velocity = Best(x0, self.patience), torch.zeros_like(x0)
        for i in range(self.steps + 1):
            rows = best.open()
            if not len(rows):
                break
            at, noise = x[rows], rng.fold("look", i)[rows]
            if self.select:
                best.choose(rows, at, self.select(victim, at, y[rows], self.loss, rng.fold("select")[rows]))
                if i == self.steps:
                    break
                best.note(rows, look := self.gradient(victim, at, y[rows], self.loss, noise))
            else:
                best.see(rows, at, look := self.gradient(victim, at, y[rows], self.loss, noise))
            grad = usable(look.grad)
            if self.momentum:
                mean = grad.abs().flatten(1).mean(dim=1).clamp_min(1e-20).view(-1, 1, 1, 1)
                grad = velocity[rows] = self.momentum * velocity[rows] + grad / mean
            x[rows] = self.threat.project(self.threat.ascend(at, grad, size), x0[rows])
        return best.outcome()


@dataclass(frozen=True)
class RandomSign:
    """The null control: ``looks`` random-sign perturbations of full size, the best one kept.

    It looks at the defence as often as an attack with as many looks, and sees nothing of its gradient. What it gains
    is what looking often gains. The first look is at the clean image.
    """

    threat: Threat
    looks: int = 21
    select: Selection = Selection()
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        numbers(self)
        if self.looks < 1:
            raise UserError(f"The null control needs at least 1 look, not {self.looks}.")

    @searching
    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        rng = begin(x0, y, rng)
        best, rows = Best(x0, patience=0), torch.arange(len(x0), device=x0.device)
        for i in range(self.looks):
            noise, x = rng.fold("look", i), x0
            if i:
                x = self.threat.project(self.threat.ascend(x0, noise.fold("sign").sign(x0), self.threat.eps), x0)
            best.see(rows, x, self.select(victim, x, y, self.loss, noise))
        return best.outcome()
