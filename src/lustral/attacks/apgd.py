"""Auto-PGD (Croce and Hein 2020) for victims with noise: the schedule follows the mean loss over selection draws."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.noise import Rng
from ..core.threat import Threat
from ..core.whole import numbers
from .gradients import Estimator, Look, Selection, Victim
from .losses import Loss, cross_entropy
from .search import Best, Outcome, begin, searching, usable


@dataclass(frozen=True)
class APGD:
    """Momentum steps that start at 2·eps and are halved, back at the best iterate, where the loss stops rising.

    As published for deterministic victims in Linf and L2; in L1 it takes SLIDE's steps and is not L1-APGD. AutoAttack's
    own schedule, best iterate and success look at one draw of a victim with noise; here they look at the mean over the
    draws of ``select``, which are the same for every iterate and are seen by no gradient. Without ``select`` the
    gradient's own draws serve (right for a victim without noise).
    """

    threat: Threat
    gradient: Estimator
    loss: Loss = cross_entropy
    steps: int = 100
    patience: int = 3
    select: Selection | None = None
    rho: float = 0.75

    def __post_init__(self) -> None:
        numbers(self)
        if self.steps < 1 or self.patience < 0:
            raise UserError("APGD needs steps ≥ 1 and patience ≥ 0.")

    @property
    def looks(self) -> int:
        return self.steps + (self.select is None)

    @searching
    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        rng = begin(x0, y, rng)
        best = Best(x0, self.patience)
        state = _State.start(self.threat.start(x0, rng.fold("start")), 2 * self.threat.eps)
        windows = checkpoints(self.steps)
        for i in range(self.steps + 1):
            rows = best.open()
            if not len(rows):
                break
            seen = self._look(victim, state.x[rows], y[rows], rng[rows], i, best, rows)
            state.compare(rows, seen)
            if i == self.steps:
                break
            if i in windows:
                state.check(rows, self.rho * windows[i])
            self._step(x0, rows, state, first=i == 0)
        return best.outcome()

    def _look(
        self, victim: Victim, x: Tensor, y: Tensor, rng: Rng, i: int, best: Best, rows: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Gradient (none at the end) and chosen loss at an iterate, which is noted."""
        if self.select:
            chosen = self.select(victim, x, y, self.loss, rng.fold("select"))
            best.choose(rows, x, chosen)
            if i == self.steps:
                return None, chosen.loss
            best.note(rows, look := self.gradient(victim, x, y, self.loss, rng.fold("look", i)))
            return usable(look.grad), chosen.loss
        look: Look = self.gradient(victim, x, y, self.loss, rng.fold("look", i))
        best.see(rows, x, look)
        return usable(look.grad), look.loss

    def _step(self, x0: Tensor, rows: Tensor, state: "_State", first: bool) -> None:
        """z = Π(x + size·direction);  x ← Π(x + a·(z − x) + (1 − a)·(x − last)),  a = 0.75, at the first step 1."""
        x, last, size = state.x[rows], state.last[rows], state.size[rows].view(-1, 1, 1, 1)
        inside = x0[rows]
        z = self.threat.project(x + size * (self.threat.ascend(x, state.grad[rows], 1.0) - x), inside)
        a = 1.0 if first else 0.75
        moved = self.threat.project(x + a * (z - x) + (1 - a) * (x - last), inside)
        state.last[rows], state.x[rows] = x, moved


def checkpoints(steps: int) -> dict[int, int]:
    """After how many steps the loss is examined, and over how many: p₀ = 0, p₁ = 0.22, then gaps that shrink by 0.03.

    No gap is below 0.06 (Croce and Hein 2020, sec. 3.2).
    """
    gap, least, less = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    found, at = {}, gap
    while at < steps:
        found[at] = gap
        gap = max(gap - less, least)
        at += gap
    return found


class _State(NamedTuple):
    """Per image: iterate and the one before, gradient, step size; best iterate, its gradient and loss; what happened.

    ``rises`` counts steps that raised the loss since the last checkpoint, ``before`` is the best loss there, ``halved``
    whether the step was halved there.
    """

    x: Tensor
    last: Tensor
    grad: Tensor
    size: Tensor
    best_x: Tensor
    best_grad: Tensor
    best_loss: Tensor
    loss: Tensor
    rises: Tensor
    before: Tensor
    halved: Tensor

    @staticmethod
    def start(x: Tensor, size: float) -> "_State":
        n, none = len(x), x.new_full((len(x),), -torch.inf)
        sizes, zeros = x.new_full((n,), size), x.new_zeros(n)
        x = x.clone()
        return _State(
            x,
            x.clone(),
            torch.zeros_like(x),
            sizes,
            x.clone(),
            torch.zeros_like(x),
            none,
            none.clone(),
            zeros,
            none.clone(),
            zeros.bool(),
        )

    def compare(self, rows: Tensor, seen: tuple[Tensor | None, Tensor]) -> None:
        """Takes in the gradient and loss at the iterates."""
        grad, loss = seen
        self.rises[rows] += ((loss > self.loss[rows]) & self.loss[rows].isfinite()).to(self.rises)
        self.loss[rows] = loss.to(self.loss)
        if grad is not None:
            self.grad[rows] = grad
        better = rows[loss > self.best_loss[rows]]
        self.best_x[better], self.best_grad[better] = self.x[better], self.grad[better]
        self.best_loss[better] = self.loss[better]

    def check(self, rows: Tensor, enough: float) -> None:
        """Halves the step where too few steps raised the loss, or where the best one and the step stood still."""
        few = self.rises[rows] < enough
        still = ~self.halved[rows] & (self.best_loss[rows] <= self.before[rows])
        halve = few | still
        back = rows[halve]
        self.halved[rows], self.before[rows] = halve, self.best_loss[rows]
        self.size[back] /= 2
        self.x[back], self.grad[back] = self.best_x[back], self.best_grad[back]
        self.rises[rows] = 0
