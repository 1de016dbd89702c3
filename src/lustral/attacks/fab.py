"""FAB-T (Croce and Hein 2020): the smallest change that makes a target win, by steps onto linearised boundaries."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.noise import Rng
from ..core.threat import L1, L2, Linf, Threat
from ..core.whole import numbers
from .gradients import AnyClass, Estimator, Look, Selection, Victim
from .losses import reach, toward
from .search import Best, Outcome, begin, searching, usable


@dataclass(frozen=True)
class FAB:
    """Minimum-norm search towards one target per image; labels are (label, target) pairs.

    A step goes from the iterate and from the clean image to the boundary f_target = f_label (of the largest other
    logit, where it is the target that counts and not any wrong class), linearised at the iterate (the mean over the
    draws of ``gradient``), overshoots by ``eta``, and mixes the two by their distances. Where most draws of ``select``
    are wrong, the iterate goes back towards the clean image by the factor ``beta``. Iterates within eps are candidates.
    """

    threat: Threat
    gradient: Estimator
    steps: int = 100
    select: Selection = Selection()
    patience: int = 1
    alpha: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        numbers(self)
        if self.steps < 1:
            raise UserError(f"FAB needs at least 1 step, not {self.steps}.")

    @property
    def looks(self) -> int:
        return self.steps

    @searching
    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        rng = begin(x0, y, rng)
        best, x = Best(x0, self.patience), x0.clone()
        loss = toward if isinstance(victim, AnyClass) else reach
        best.choose(best.open(), x0, self.select(victim, x0, y, loss, rng.fold("select")))
        for i in range(self.steps):
            rows = best.open()
            if not len(rows):
                break
            at, clean, labels = x[rows], x0[rows], y[rows]
            look = self.gradient(victim, at, labels, loss, rng.fold("look", i)[rows])
            best.note(rows, look)
            at = self._step(at, clean, look)
            seen = self.select(victim, at, labels, loss, rng.fold("select")[rows])
            within = self.threat.distance(at, clean) <= self.threat.eps
            best.choose(rows[within], at[within], Look(None, seen.loss[within], seen.wrong[within]))
            crossed = (seen.wrong > 0.5).view(-1, 1, 1, 1)
            x[rows] = torch.where(crossed, clean + self.beta * (at - clean), at)
        return best.outcome()

    def _step(self, at: Tensor, clean: Tensor, look: Look) -> Tensor:
        # The linearisation: f(z) ≈ loss + ⟨w, z − at⟩, so the boundary is ⟨w, z⟩ = ⟨w, at⟩ − loss.
        w = usable(look.grad)
        level = (w * at).flatten(1).sum(dim=1) - look.loss
        from_here, from_clean = (onto_boundary(self.threat, z, w, level) for z in (at, clean))
        here, there = (self.threat.distance(z + d, z) for z, d in ((at, from_here), (clean, from_clean)))
        mix = (here / (here + there).clamp_min(1e-12)).clamp_max(self.alpha).view(-1, 1, 1, 1)
        moved = (1 - mix) * (at + self.eta * from_here) + mix * (clean + self.eta * from_clean)
        return moved.clamp(0, 1)


def onto_boundary(threat: Threat, x: Tensor, w: Tensor, level: Tensor) -> Tensor:
    """The smallest d in the threat's norm with ⟨w, x + d⟩ = level and x + d in [0, 1]; the furthest possible if none.

    Pixels move along sign(s·w), s the side, each at most to its edge. In Linf all by the same length, in L2 by
    proportion to |w|, in L1 one after another from the largest |w|: the common length is found by bisection, as the
    gain grows with it.
    """
    need = level - (w * x).flatten(1).sum(dim=1)
    direction = torch.where(need >= 0, 1.0, -1.0).view(-1, 1) * w.flatten(1).sign()
    size, flat = w.flatten(1).abs(), x.flatten(1)
    room = torch.where(direction > 0, 1 - flat, flat) * (direction != 0)
    if isinstance(threat, L1):
        moved = _largest_first(size, room, need.abs())
    elif isinstance(threat, Linf | L2):
        moved = _together(torch.ones_like(size) if isinstance(threat, Linf) else size, size, room, need.abs())
    else:
        raise UserError(f"FAB knows Linf, L2 and L1, not {type(threat).__name__}.")
    return (direction * moved).view_as(x)


def _together(share: Tensor, size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """min(t·share, room) with the t at which Σ size·moved = need."""
    low = torch.zeros_like(need)[:, None]
    high = (room / share.clamp_min(1e-20)).where(share > 0, 0.0).amax(dim=1, keepdim=True)
    for _ in range(100):  # a tiny weight makes the first bound as large as 1e20
        middle = (low + high) / 2
        enough = (size * torch.minimum(middle * share, room)).sum(dim=1, keepdim=True) >= need[:, None]
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.minimum(high * share, room)


def _largest_first(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Pixels are filled in the order of their weight until Σ size·moved = need."""
    order = size.argsort(dim=1, descending=True)
    gains = (size * room).gather(1, order)
    before = gains.cumsum(dim=1) - gains
    left = (need[:, None] - before).clamp_min(0)
    weight = size.gather(1, order).clamp_min(1e-20)
    moved = torch.minimum(left / weight, room.gather(1, order))
    return torch.zeros_like(moved).scatter(1, order, moved)
