"""How the logits of several draws become one verdict.

A vote maps logits [b, draws, classes] to merged logits [b, classes], whose argmax is the verdict. Merged logits stay
differentiable except for ``Majority``, whose gradient is that of the mean softmax (said so by name below).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import UserError
from .whole import numbers, whole

ABSTAIN = -1


class Vote(Protocol):
    """Merges draws. ``draws`` is how many purifications one decision takes."""

    draws: int

    def merge(self, logits: Tensor) -> Tensor: ...

    def label(self, merged: Tensor) -> Tensor: ...


def _check_draws(draws: int) -> None:
    if whole(draws, "A vote's number of draws") < 1:
        raise UserError(f"A vote needs at least 1 draw, not {draws}.")


@dataclass(frozen=True)
class Single:
    """One draw decides."""

    draws: int = 1

    def __post_init__(self) -> None:
        numbers(self)
        if self.draws != 1:
            raise UserError("Single decides by one draw; for more, choose MeanSoftmax, MeanLogits or Majority.")

    def merge(self, logits: Tensor) -> Tensor:
        return logits[:, 0]

    def label(self, merged: Tensor) -> Tensor:
        return merged.argmax(dim=-1)


@dataclass(frozen=True)
class MeanLogits:
    """The mean of the logits."""

    draws: int

    def __post_init__(self) -> None:
        _check_draws(self.draws)

    def merge(self, logits: Tensor) -> Tensor:
        return logits.mean(dim=1)

    def label(self, merged: Tensor) -> Tensor:
        return merged.argmax(dim=-1)


@dataclass(frozen=True)
class MeanSoftmax:
    """The logarithm of the mean of the class probabilities."""

    draws: int

    def __post_init__(self) -> None:
        _check_draws(self.draws)

    def merge(self, logits: Tensor) -> Tensor:
        return torch.logsumexp(logits.log_softmax(dim=-1), dim=1) - math.log(logits.shape[1])

    def label(self, merged: Tensor) -> Tensor:
        return merged.argmax(dim=-1)


@dataclass(frozen=True)
class Majority:
    """The class with the most draws; a tie goes to the tied class with the largest mean probability.

    Merged logits are log(share of draws + mean probability / (2·draws)): the argmax is the rule above, because the
    second term is below one vote. The count has no gradient, so an attack follows the mean probability.
    """

    draws: int

    def __post_init__(self) -> None:
        _check_draws(self.draws)

    def merge(self, logits: Tensor) -> Tensor:
        draws, classes = logits.shape[1:]
        counts = torch.nn.functional.one_hot(logits.argmax(dim=-1), classes).sum(dim=1)
        share = counts.to(logits.dtype) / draws + logits.softmax(dim=-1).mean(dim=1) / (2 * draws)
        return share.clamp_min(torch.finfo(share.dtype).tiny).log()

    def label(self, merged: Tensor) -> Tensor:
        return merged.argmax(dim=-1)


@dataclass(frozen=True)
class Abstain:
    """Another vote, with no verdict (label -1) where the top class leads by less than ``margin`` of probability."""

    vote: Vote
    margin: float

    def __post_init__(self) -> None:
        numbers(self)
        if not 0 <= self.margin <= 1:
            raise UserError(f"The abstention margin is a difference of probabilities in [0, 1], not {self.margin}.")

    @property
    def draws(self) -> int:
        return self.vote.draws

    def merge(self, logits: Tensor) -> Tensor:
        return self.vote.merge(logits)

    def label(self, merged: Tensor) -> Tensor:
        top = merged.softmax(dim=-1).topk(2, dim=-1).values
        return torch.where(top[:, 0] - top[:, 1] < self.margin, ABSTAIN, self.vote.label(merged))
