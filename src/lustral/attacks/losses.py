"""What an attack climbs: functions from logits [b, classes] and labels to a value per row [b]; larger is worse.

Labels are [b], or pairs [b, 2] of the true label and the class to reach where a loss is targeted. Rows of logits that
are probabilities count by their logarithms, which decide alike, and have a gradient where probabilities have none left.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]


def truth(y: Tensor) -> Tensor:
    """The true labels [b] of labels or of (label, target) pairs."""
    return y if y.dim() == 1 else y[:, 0]


def _single(y: Tensor) -> Tensor:
    if y.dim() != 1:
        raise UserError(
            "This loss knows no targets; a search for (label, target) pairs climbs `losses.toward` or `dlr_toward`."
        )
    return y


def _pairs(y: Tensor) -> Tensor:
    if y.dim() != 2 or y.shape[1] != 2:
        raise UserError(
            "FAB and targeted losses need a class to reach: give (label, target) pairs, or put the search into "
            "Targeted(...)."
        )
    return y


def scores(logits: Tensor) -> Tensor:
    """The logits, but the logarithms of rows that are probabilities: none below 0, and adding up to 1 within 1e-4."""
    told = logits.detach()
    likely = (told >= 0).all(dim=1) & ((told.sum(dim=1) - 1).abs() < 1e-4)
    if not likely.any():
        return logits
    return torch.where(likely[:, None], logits.clamp_min(torch.finfo(logits.dtype).tiny).log(), logits)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """−log p(y)."""
    return F.cross_entropy(scores(logits), _single(y), reduction="none")


def _best_other(logits: Tensor, y: Tensor) -> Tensor:
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(dim=1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus the true one (Carlini and Wagner 2017); positive where the label is wrong."""
    logits = scores(logits)
    return _best_other(logits, _single(y)) - logits.gather(1, y[:, None])[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6): the margin over the spread of the top three logits.

    With two classes it would be constant, and is the margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = scores(logits).sort(dim=1, descending=True).values
    spread = top[:, 0] - top[:, 2]
    return margin(logits, y) / spread.clamp_min(1e-12)


def toward(logits: Tensor, pairs: Tensor) -> Tensor:
    """The target's logit minus the true one: positive where the target beats the truth."""
    own = scores(logits).gather(1, _pairs(pairs))
    return own[:, 1] - own[:, 0]


def reach(logits: Tensor, pairs: Tensor) -> Tensor:
    """The target's logit minus the largest other: positive exactly where the target is reached."""
    return -margin(logits, _pairs(pairs)[:, 1])


def dlr_toward(logits: Tensor, pairs: Tensor) -> Tensor:
    """Targeted DLR (Croce and Hein 2020, eq. 7): the same over the top logit's lead on the third and fourth."""
    if logits.shape[1] < 3:
        return toward(logits, pairs)
    top = scores(logits).sort(dim=1, descending=True).values
    classes = top.shape[1]
    spread = top[:, 0] - (top[:, 2] + top[:, min(3, classes - 1)]) / 2
    return toward(logits, pairs) / spread.clamp_min(1e-12)


def lead(y: Tensor, loss: Loss = margin) -> Loss:
    """A loss by which candidates for labels y are compared: ``loss``, or ``reach`` where they are pairs."""
    return loss if y.dim() == 1 else reach


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}
