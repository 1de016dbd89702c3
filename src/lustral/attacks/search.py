"""What all searches share: the outcome, the bookkeeping of candidates, and searches made of other searches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..core import check
from ..core.errors import UserError
from ..core.inference import differentiable
from ..core.noise import Key, Rng, as_rng
from ..core.threat import Threat
from ..core.whole import numbers, whole
from .gradients import Look, Victim


class Outcome(NamedTuple):
    """Candidates and what the search saw, on its own noise; the judge looks again.

    A draw is wrong where it is what the search wants: any wrong class, or the target where labels are pairs. Images
    x [b, c, h, w]; their mean loss and share of wrong draws [b] on the noise by which they were chosen; and the same of
    every look [b, looks], each on noise of its own, NaN where an image had left.
    """

    x: Tensor
    loss: Tensor
    wrong: Tensor
    losses: Tensor
    wrongs: Tensor

    @property
    def looks(self) -> Tensor:
        """Looks that were spent on each image [b]."""
        return (~self.wrongs.isnan()).sum(dim=1)


class Attack(Protocol):
    """A search. ``rng`` is the attack's noise; ``looks`` is the largest number of looks it takes at an image."""

    threat: Threat
    looks: int

    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome: ...


def searching(run: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """A search's ``run``: it keeps no graph, and whoever calls it in inference mode gets its gradients all the same."""

    @wraps(run)
    def on_victim(self: Attack, victim: Victim, *given: Any, **named: Any) -> Outcome:
        if callable(victim) and not hasattr(victim, "logits"):
            kind = type(victim).__name__
            raise UserError(f"An attack is on a defence, not on {kind}; lustral.defend(classifier) makes one of it.")
        return run(self, victim, *given, **named)

    return differentiable(torch.no_grad()(on_victim))


def begin(x0: Tensor, y: Tensor, rng: Rng | Key | int) -> Rng:
    """Says what is wrong with images to attack or with their labels ([b] or pairs [b, 2]); gives the attack's noise."""
    check.images(x0, "images to attack")
    if x0.dtype not in (torch.float32, torch.float64):
        said = f"images to attack must be float32 or float64, not {str(x0.dtype).removeprefix('torch.')}"
        raise UserError(f"{said}, which rounds beyond eps; call .float() on them.")
    check.labels(y, len(x0), pairs=True)
    return as_rng(rng, len(x0))


class Best:
    """The candidate with the largest share of wrong draws, and among those the largest mean loss, per image.

    An image is decided once all draws were wrong in ``patience`` looks in a row (0: never): those by which candidates
    are chosen, and those of the looks that are only noted.
    """

    def __init__(self, x0: Tensor, patience: int):
        if whole(patience, "patience") < 0:
            raise UserError(f"patience is 0 (never) or a number of looks, not {patience}.")
        self.x, self.patience = x0.clone(), patience
        self.loss, self.wrong = x0.new_full((len(x0),), -torch.inf), x0.new_full((len(x0),), -1.0)
        self.streak = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        self._losses: list[Tensor] = []
        self._wrongs: list[Tensor] = []

    def note(self, rows: Tensor, look: Look) -> None:
        """Notes a look at the images of ``rows``."""
        for history, new in ((self._losses, look.loss), (self._wrongs, look.wrong)):
            history.append(torch.full_like(self.loss, torch.nan).index_copy(0, rows, new.to(self.loss)))
        self.streak[rows] = torch.where(look.wrong == 1, self.streak[rows], 0)

    def choose(self, rows: Tensor, x: Tensor, look: Look) -> None:
        """Keeps the images x of ``rows`` where this look at them is the best so far."""
        better = _better(look, self, rows)
        into = rows[better]
        self.x[into] = x[better].detach()
        self.loss[into], self.wrong[into] = look.loss[better].to(self.loss), look.wrong[better].to(self.wrong)
        self.streak[rows] = torch.where(look.wrong == 1, self.streak[rows] + 1, 0)

    def see(self, rows: Tensor, x: Tensor, look: Look) -> None:
        """Notes a look and chooses by it."""
        self.note(rows, look)
        self.choose(rows, x, look)

    def open(self) -> Tensor:
        """The rows that are still searched."""
        decided = self.streak >= self.patience if self.patience else torch.zeros_like(self.streak, dtype=torch.bool)
        return (~decided).nonzero()[:, 0]

    def outcome(self) -> Outcome:
        none = self.loss.new_empty(len(self.loss), 0)
        losses, wrongs = (torch.stack(seen, dim=1) if seen else none for seen in (self._losses, self._wrongs))
        return Outcome(self.x, self.loss, self.wrong, losses, wrongs)


def _better(new: Look | Outcome, old: "Best | Outcome", rows: Tensor) -> Tensor:
    """Where what was seen now is worse for the victim than what was known of ``rows``."""
    return (new.wrong > old.wrong[rows]) | ((new.wrong == old.wrong[rows]) & (new.loss > old.loss[rows]))


def usable(grad: Tensor) -> Tensor:
    """A gradient to step along: zero where it is NaN or infinite, so that an image without one stays an image."""
    return grad.nan_to_num(0.0, 0.0, 0.0)


def join(first: Outcome, second: Outcome, rows: Tensor) -> Outcome:
    """The better candidate of each image from two searches, the second of which saw ``rows`` of the first's batch."""
    better = _better(second, first, rows)
    into = rows[better]
    best = [old.index_copy(0, into, new[better]) for old, new in zip(first[:3], second[:3], strict=True)]
    histories = []
    for old, new in zip(first[3:], second[3:], strict=True):
        blank = old.new_full((len(old), new.shape[1]), torch.nan)
        histories.append(torch.cat([old, blank.index_copy(0, rows, new)], dim=1))
    return Outcome(*best, *histories)


@dataclass(frozen=True)
class Restarts:
    """A search ``times`` over, each with noise and a start of its own, on the images that it has not fooled yet."""

    search: Attack
    times: int
    leave: bool = True

    def __post_init__(self) -> None:
        numbers(self)
        if self.times < 1:
            raise UserError(f"Restarts needs at least 1 restart, not {self.times}.")

    @property
    def threat(self) -> Threat:
        return self.search.threat

    @property
    def looks(self) -> int:
        return self.times * self.search.looks

    @searching
    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        rng = begin(x0, y, rng)
        found = self.search.run(victim, x0, y, rng.fold("restart", 0))
        for i in range(1, self.times):
            rows = unfooled(found, self.leave)
            if len(rows):
                part = self.search.run(victim, x0[rows], y[rows], rng.fold("restart", i)[rows])
                found = join(found, part, rows)
        return found


def unfooled(found: Outcome, leave: bool = True) -> Tensor:
    """The rows whose candidate was right in some draw; all rows unless fooled ones ``leave``."""
    return (found.wrong < 1).nonzero()[:, 0] if leave else torch.arange(len(found.x), device=found.x.device)
