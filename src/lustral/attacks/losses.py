"""What an attack climbs: functions from logits [b, classes] and labels [b] to a value per row [b]; larger is worse."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """−log p(y)."""
    return F.cross_entropy(logits, y, reduction="none")


def _best_other(logits: Tensor, y: Tensor) -> Tensor:
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(dim=1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus the true one (Carlini and Wagner 2017); positive where the label is wrong."""
    return _best_other(logits, y) - logits.gather(1, y[:, None])[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6): the margin over the spread of the top three logits."""
    top = logits.sort(dim=1, descending=True).values
    spread = top[:, 0] - top[:, min(2, top.shape[1] - 1)]
    return margin(logits, y) / spread.clamp_min(1e-12)


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}
