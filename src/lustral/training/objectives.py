"""What is minimised: functions from (model, x, y, rng) to a loss per sample [b]. This one is the classifier's."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.noise import Rng

Objective = Callable[[nn.Module, Tensor, Tensor, Rng], Tensor]


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
        return F.cross_entropy(model(x), y, label_smoothing=self.smoothing, reduction="none")
