"""What is minimised: functions from (model, x, y, rng) to a loss per sample [b]. This one is the classifier's."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..core import check
from ..core.noise import Rng

Objective = Callable[[nn.Module, Tensor, Tensor, Rng], Tensor]


def cross_entropy(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Per sample [b], of labels that are classes: torch leaves out those of -100 without a word."""
    check.labels(y, len(logits), logits.shape[1])
    return F.cross_entropy(logits, y, label_smoothing=smoothing, reduction="none")


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of logits, with label smoothing, on images with Gaussian noise of a random level up to ``noise``.

    ``noise`` is 0 for a plain classifier.
    """

    smoothing: float = 0.0
    noise: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        if self.noise:
            level = self.noise * rng.fold("level").uniform(x[:, :1, :1, :1])
            x = (x + level * rng.fold("noise").normal(x)).clamp(0, 1)
        return cross_entropy(model(x), y, self.smoothing)
