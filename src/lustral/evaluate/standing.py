"""How candidates stand with the judge, and what is known of it while a run goes on."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.vote import Vote
from . import metrics


class Standing(NamedTuple):
    """How the judge found a candidate: shares of right decisions and of right draws, and the mean margin of draws."""

    decisions: float
    draws: float
    margin: float


def standings(ids: Sequence[int], logits: Tensor, y: Tensor, vote: Vote) -> dict[int, Standing]:
    """The standing of every image, from the logits of its draws [n, draws, classes]."""
    decisions = metrics.voted(logits, y, vote).double().mean(dim=1).tolist()
    draws = metrics.right(logits, y).double().mean(dim=1).tolist()
    margin = metrics.margins(logits, y).double().mean(dim=1).nan_to_num(nan=-torch.inf).tolist()
    return dict(zip(ids, map(Standing, decisions, draws, margin), strict=True))


class Store(Protocol):
    """What is known of a run so far, by (system, stage)."""

    def done(self, system: str, stage: str) -> set[int]:
        """The images that are finished."""

    def standing(self, system: str, stage: str, vote: Vote) -> dict[int, Standing]:
        """How each image stands with the judge."""

    def candidates(self, system: str, stage: str, ids: Sequence[int]) -> Tensor:
        """Candidates [n, c, h, w] of some images."""
