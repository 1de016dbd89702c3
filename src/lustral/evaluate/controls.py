"""Deliberately bad parts: an evaluation that does not raise an alarm on them is not to be believed.

Two purifiers that do nothing for robustness but hide gradients, and two attacks that do not work. They ship so that
anyone can put them through the whole protocol (``lustral controls``); the tests do.
"""

from dataclasses import dataclass, fields, is_dataclass, replace

import torch
from torch import Tensor

from ..attacks.gradients import Estimator, Gradient, Look, Victim
from ..attacks.losses import Loss
from ..attacks.search import Attack, Outcome
from ..core.noise import Rng
from ..core.purifier import Purifier
from ..core.threat import Threat
from ..purifiers.compose import from_function
from .protocol import Stage, nothing


def shattered(levels: int = 16) -> Purifier:
    """Rounds pixels to a few grey levels: no gradient at all, and hardly any protection."""
    return from_function(lambda x: torch.round(x * levels) / levels)


def rippled(height: float = 0.01, frequency: float = 2000.0) -> Purifier:
    """Adds a ripple that nobody sees, with a slope twenty times that of the image: a gradient, but a useless one."""
    return from_function(lambda x: x + height * torch.sin(frequency * x))


@dataclass(frozen=True)
class Reversed:
    """A gradient with its sign turned: the most common slip in an attack of one's own."""

    gradient: Estimator

    def __call__(self, victim: Victim, x: Tensor, y: Tensor, loss: Loss, rng: Rng) -> Look:
        look = self.gradient(victim, x, y, loss, rng)
        return look._replace(grad=-look.grad)


@dataclass(frozen=True)
class Overstepping:
    """An attack that hands in images outside its threat."""

    threat: Threat
    looks: int = 0

    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        return nothing(x0 + 2 * self.threat.eps)


def reverse(part: Attack) -> Attack:
    """The same search with every gradient in it turned."""
    changes = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Gradient):
            changes[field.name] = Reversed(value)
        elif is_dataclass(value) and field.name == "search":
            changes[field.name] = reverse(value)
    return replace(part, **changes)


def sabotaged(stage: Stage) -> Stage:
    """A stage whose attack follows turned gradients."""
    return stage if stage.attack is None else replace(stage, attack=reverse(stage.attack))
