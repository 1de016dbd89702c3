"""What a control is: a system that an evaluation must see through, or leave alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ..core.threat import Threat
from ..defence import Defence
from ..evaluate.protocol import Data, Stage


class Parts(NamedTuple):
    """What controls are made of: a classifier, a denoiser, the images and the threat that they will meet.

    ``device`` is where shipped networks that a control asks for by name are put.
    """

    net: nn.Module
    denoiser: nn.Module
    data: Data
    threat: Threat
    device: str = "cpu"


def same(stage: Stage, threat: Threat) -> Stage:
    """A stage as it is."""
    return stage


@dataclass(frozen=True)
class Control:
    """A system, what is done to its stages, and the findings one of which must be red; none where it is sound.

    Suites in which it is ``unseen`` are known to have none of these findings red: there a green page is no evidence.
    """

    make: Callable[[Parts], Defence]
    expected: tuple[str, ...] = ()
    spoil: Callable[[Stage, Threat], Stage] = same
    random: bool = False
    unseen: tuple[str, ...] = ()

    def holds(self, suite: str, red: tuple[str, ...]) -> bool:
        """A sound control has no red finding; the others have an expected one, where the suite can see them."""
        if not self.expected:
            return not red
        return bool(set(self.expected) & set(red)) == (suite not in self.unseen)
