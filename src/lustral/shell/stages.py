"""Attacks by the names of stages: what ``--stages`` and ``lustral attack --stage`` know."""

from collections.abc import Callable
from typing import NamedTuple

from ..attacks.apgd import APGD
from ..attacks.composed import Transfer
from ..attacks.deviated import Deviated
from ..attacks.estimators import SPSA, Displacement, Joint, LowPass, SignVoted
from ..attacks.gradients import Estimator, Gradient, Selection, blind, bpda, exact, surrogate
from ..attacks.guide import guides
from ..attacks.levels import HeldLevel, LoweredNorm, statistic
from ..attacks.losses import LOSSES
from ..attacks.pgd import PGD, RandomSign
from ..attacks.search import Attack, Restarts
from ..attacks.square import Square
from ..attacks.stadv import Flow, StAdv
from ..core.adjoint import Checkpointed, Skip
from ..core.errors import UserError
from ..core.threat import Threat
from ..evaluate.protocol import System
from ..evaluate.suites import probe
from ..purifiers.adaptive import Adaptive, AdaptivePublished
from .options import Search


class Making(NamedTuple):
    """What an attack is made from."""

    system: System
    threat: Threat
    search: Search
    budget: int

    @property
    def loss(self):
        return LOSSES[self.search.loss]

    @property
    def select(self) -> Selection | None:
        """As many draws as a gradient's; none where there is no noise."""
        return Selection(self.eot) if self.system.random else None

    @property
    def eot(self) -> int:
        return self.search.eot if self.system.random else 1

    @property
    def patience(self) -> int:
        """Looks in a row that must fool: a lucky draw is no proof, where there are draws."""
        return 3 if self.system.random else 1

    def restarted(self, attack: Attack, leave: bool = True) -> Attack:
        return attack if self.search.restarts == 1 else Restarts(attack, self.search.restarts, leave)

    def pgd(self, gradient: Estimator, select: Selection | None, leave: bool = True) -> Attack:
        """Images leave once they are fooled, or none does: what fools the classifier alone may not fool the defence."""
        s, patience = self.search, 3 if leave else 0
        search = PGD(
            self.threat, gradient, self.loss, s.steps, s.step_size, s.momentum, patience=patience, select=select
        )
        return self.restarted(search, leave)

    def exact(self) -> Gradient:
        return exact(self.eot, self.budget)


def _null(m: Making) -> Attack:
    return RandomSign(m.threat, m.search.restarts * (m.search.steps + 1), m.select or Selection(), m.loss)


def _score(m: Making) -> Attack:
    """Joint attack (score): half the step along the purifier's own field, which only ADP has."""
    purifier = m.system.defence.purifier
    if not isinstance(purifier, Adaptive | AdaptivePublished):
        raise UserError("Stage 'joint score' needs the score field of ADP; for other purifiers use 'joint full'.")
    purifier = getattr(purifier, "adp", purifier)
    return m.pgd(Joint(bpda(m.eot), lambda x, rng: purifier.field(x)), m.select)


def _levels(m: Making, adjoint: type[HeldLevel] | type[LoweredNorm]) -> Attack:
    statistic(m.system.defence.purifier)  # which says at once if there is none
    return m.pgd(Gradient(adjoint(adjoint=Checkpointed(m.budget)), m.eot), m.select)


def _guide(m: Making) -> Attack:
    found = guides(m.system.defence.purifier)
    if not found:
        raise UserError("Stage 'guide' attacks the classifier that guides a purifier; only agdm has one.")
    own = APGD(m.threat, exact(1), m.loss, m.search.steps, patience=0)
    return Transfer(m.restarted(own, leave=False), found, m.select or Selection())


def _surrogate(m: Making) -> Attack:
    if m.system.surrogate is None:
        raise UserError("Stage 'surrogate' halves the steps of a diffusion; this purifier has none to halve.")
    return m.pgd(surrogate(m.system.surrogate, m.eot), m.select)


ATTACKS: dict[str, Callable[[Making], Attack | None]] = {
    "clean": lambda m: None,
    "null": _null,
    "blind": lambda m: m.pgd(blind(), Selection(1, Skip()), leave=False),
    "bpda": lambda m: m.pgd(bpda(m.eot), m.select),
    "exact": lambda m: m.pgd(m.exact(), m.select),
    "fixed": lambda m: m.pgd(exact(1, m.budget), None),
    "known init": lambda m: m.pgd(m.exact(), m.select),
    "known step": lambda m: m.pgd(m.exact(), m.select),
    "spsa": lambda m: m.pgd(SPSA(64 * m.eot, probe(m.threat)), m.select or Selection()),
    "bpda signs": lambda m: m.pgd(SignVoted(bpda(m.eot)), m.select),
    "joint score": _score,
    "joint full": lambda m: m.pgd(Joint(bpda(m.eot), Displacement(m.system.defence.purifier, m.eot)), m.select),
    "low-frequency": lambda m: m.pgd(LowPass(m.exact()), m.select),
    "deviated": lambda m: m.pgd(Gradient(Deviated(1.0, Checkpointed(m.budget)), m.eot), m.select),
    "held level": lambda m: _levels(m, HeldLevel),
    "lowered norm": lambda m: _levels(m, LoweredNorm),
    "surrogate": _surrogate,
    "guide": _guide,
    "square": lambda m: Square(m.threat, 50 * m.search.steps, m.loss, m.select or Selection(), m.patience),
    "apgd": lambda m: m.restarted(APGD(m.threat, m.exact(), m.loss, m.search.steps, select=m.select)),
    "stadv": lambda m: StAdv(Flow(1), m.exact(), m.loss, m.search.steps, select=m.select or Selection()),
}
PURIFIED = {"bpda signs", "joint score", "joint full", "deviated", "surrogate", "known init", "known step"}
PURIFIED |= {"held level", "lowered norm", "guide"}
