"""Searches around searches: one target class after another, and candidates made on other victims."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import check
from ..core.errors import UserError
from ..core.noise import Rng
from ..core.threat import Threat
from ..core.whole import numbers, whole
from ..defence import Classifier, Defence
from .gradients import AnyClass, Selection, Victim
from .losses import Loss, lead, margin
from .search import Attack, Best, Outcome, begin, join, searching, unfooled


@dataclass(frozen=True)
class Targeted:
    """A targeted search towards each of the ``targets`` likeliest wrong classes, on the images not fooled yet.

    Targets are directions: an image is fooled by whatever wrong class it meets. Classes are ranked by the mean logits
    of the clean image over the draws of ``select``.
    """

    search: Attack
    targets: int = 9
    select: Selection = Selection()
    leave: bool = True

    def __post_init__(self) -> None:
        numbers(self)
        if whole(self.targets, "targets") < 1:
            raise UserError(f"A targeted attack needs at least 1 target, not {self.targets}.")

    @property
    def threat(self) -> Threat:
        return self.search.threat

    @property
    def looks(self) -> int:
        return self.targets * self.search.looks

    @searching
    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        rng = begin(x0, y, rng)
        if y.dim() != 1:
            raise UserError("Targeted chooses targets itself; give pairs of label and target to its search instead.")
        ranked = self._ranked(victim, x0, y, rng.fold("rank"))
        found = None
        for k in range(min(self.targets, ranked.shape[1])):
            rows = torch.arange(len(x0), device=x0.device) if found is None else unfooled(found, self.leave)
            if not len(rows):
                break
            pairs = torch.stack([y, ranked[:, k]], dim=1)[rows]
            part = self.search.run(AnyClass(victim), x0[rows], pairs, rng.fold("target", k)[rows])
            found = part if found is None else join(found, part, rows)
        return Best(x0, patience=0).outcome() if found is None else found

    @torch.no_grad()
    def _ranked(self, victim: Victim, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """All classes but the true one, the likeliest first, [b, classes − 1]."""
        n = self.select.draws
        logits = victim.logits(x.repeat_interleave(n, dim=0), rng.repeat(n), self.select.adjoint)
        mean = logits.unflatten(0, (len(x), n)).mean(dim=1)
        own = torch.nn.functional.one_hot(check.labels(y, len(mean), mean.shape[1]), mean.shape[1]).bool()
        return mean.masked_fill(own, -torch.inf).argsort(dim=1, descending=True)[:, :-1]


@dataclass(frozen=True)
class Transfer:
    """A search on other victims, whose candidates are shown to this one; the best is kept.

    Sources may be other defences, bare classifiers, or the victim with its noise fixed (``KnownNoise``).
    """

    search: Attack
    sources: tuple[Victim | Classifier, ...]
    select: Selection = Selection()
    loss: Loss = margin

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("A transfer attack needs at least one source.")
        bare = [callable(source) and not hasattr(source, "logits") for source in self.sources]
        victims = (Defence(source) if alone else source for source, alone in zip(self.sources, bare, strict=True))
        object.__setattr__(self, "sources", tuple(victims))

    @property
    def threat(self) -> Threat:
        return self.search.threat

    @property
    def looks(self) -> int:
        return len(self.sources)

    @searching
    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        rng = begin(x0, y, rng)
        best, rows = Best(x0, patience=0), torch.arange(len(x0), device=x0.device)
        for k, source in enumerate(self.sources):
            found = self.search.run(source, x0, y, rng.fold("source", k))
            best.see(rows, found.x, self.select(victim, found.x, y, lead(y, self.loss), rng.fold("select")))
        return best.outcome()
