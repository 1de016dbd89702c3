"""Attacks of other libraries on our victims, with our expectation over transformation (EOT)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import check
from ..core.adjoint import Checkpointed
from ..core.errors import UserError
from ..core.generators import seeded
from ..core.networks import Modeless
from ..core.noise import Key, Rng
from ..core.threat import Threat
from ..core.whole import numbers
from .gradients import AnyClass, KnownNoise, Selection, Victim
from .losses import lead
from .search import Best, Outcome, begin, searching

ROUNDING = 1e-4
"""How far outside of a threat an image may be by rounding."""
Perturb = Callable[[Tensor, Tensor], Tensor]


class Averaged(Modeless):
    """What a foreign attack sees of a victim: at every call fresh noise, and the mean over ``eot`` decisions.

    It returns mean log-probabilities [n, classes]. The true-class entry is minus the mean cross-entropy, exactly the
    EOT loss of ``exact(eot)``. A foreign attack's cross-entropy adds the log-normaliser of the averaged row, which
    makes it the cross-entropy of the mean logits: the same at one draw; at more, every draw's log-probability ratios
    weigh alike, where the EOT loss leans to draws that are already wrong, so the two gradients differ where draws
    disagree. Margins are means of log-probability ratios. Rows may be any images in any number: noise belongs to the
    call and to the row's place in it. The gradient is the exact one.
    """

    def __init__(self, victim: Victim, key: Key, eot: int = 1, y: Tensor | None = None):
        """``y`` are the labels of the attack, which must be among the classes."""
        super().__init__()
        if eot < 1:
            raise UserError(f"EOT needs at least 1 draw, not {eot}.")
        self.victim, self.key, self.eot, self.y = victim, key, eot, y
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        rng = self.key.fold("call", self.calls).rng(len(x)).repeat(self.eot)
        logits = self.victim.logits(x.repeat_interleave(self.eot, dim=0), rng, Checkpointed())
        if self.y is not None:
            check.labels(self.y, len(self.y), logits.shape[1], pairs=True)
        return logits.log_softmax(dim=1).view(len(x), self.eot, -1).mean(dim=1)


@dataclass(frozen=True)
class Foreign:
    """A foreign attack as a search with one look.

    ``make`` takes a module (images to logits) and returns the attack: (x, y) → images of the same shape. Its labels are
    those of the search, [b], or (label, target) pairs [b, 2] whose targets it is to reach, or to refuse. What comes
    back is projected into the threat and shown to ``select``. An attack that ``keeps`` the threat by itself is taken at
    its word: what it leaves outside is left there, for the judge to mend and to count.
    """

    threat: Threat
    make: Callable[[nn.Module], Perturb]
    eot: int = 1
    select: Selection = Selection()
    keeps: bool = False

    __post_init__ = numbers

    @property
    def looks(self) -> int:
        return 1

    @searching
    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        rng = begin(x0, y, rng)
        bare = victim.victim if isinstance(victim, AnyClass) else victim
        if isinstance(bare, KnownNoise):
            raise UserError(
                "Foreign attacks do not say which image a row is, so they cannot use known noise; give the library "
                "defence.bind(key) instead."
            )
        if not len(x0):  # which libraries do not take
            return Best(x0, patience=0).outcome()
        key = rng.key.fold("foreign", *rng.ids.tolist())
        with seeded(int(key.philox("seed")[0]) >> 33, x0.device), torch.enable_grad():
            found = self.make(Averaged(victim, key, self.eot, y))(x0.float().clone(), y.clone())
        if not isinstance(found, Tensor) or found.shape != x0.shape:
            said = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"An attack returns images {list(x0.shape)} for images of that shape, not {said}.")
        x = found.detach().to(x0)
        inside = self.threat.project(x, x0)
        within = (self.threat.distance(x, inside) <= ROUNDING).view(-1, 1, 1, 1)
        x = torch.where(within, inside, x) if self.keeps else inside
        best, rows = Best(x0, patience=0), torch.arange(len(x0), device=x0.device)
        best.see(rows, x, self.select(victim, x, y, lead(y), rng.fold("select")))
        return best.outcome()
