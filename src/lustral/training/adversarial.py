"""Adversarial training of classifiers: PGD-AT and TRADES."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.noise import Rng
from ..core.threat import Linf, Threat
from .inner import climb, evaluating
from .objectives import cross_entropy


@dataclass(frozen=True)
class PGDAT:
    """Madry et al. (ICLR 2018): cross-entropy on images that PGD made in evaluation mode, from a start in the ball."""

    threat: Threat = Linf(8 / 255)
    steps: int = 10
    size: float = 2 / 255
    smoothing: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        def loss(moved: Tensor) -> Tensor:
            return cross_entropy(model(moved), y)

        with evaluating(model):
            moved = climb(loss, self.threat.start(x, rng), x, self.threat, self.steps, self.size)
        return cross_entropy(model(moved), y, self.smoothing)


@dataclass(frozen=True)
class TRADES:
    """Zhang et al. (ICML 2019): cross-entropy on clean images plus beta·KL(clean ‖ adversarial).

    The search climbs the KL from a start of 0.001·N(0, 1), in evaluation mode. The clean branch of the KL is
    differentiated too. With SiLU, weight averaging, smoothing 0.1 and generated images beside the real ones it is close
    to the recipes of Gowal et al. (2020), whose search is Adam's, and Wang et al. (2023), who start uniformly in the
    ball and search in training mode.
    """

    threat: Threat = Linf(8 / 255)
    beta: float = 6.0
    steps: int = 10
    size: float = 0.007
    smoothing: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        with evaluating(model):
            with torch.no_grad():
                target = _log_softmax(model(x))
            torch.clear_autocast_cache()  # older torch keeps the bfloat16 weights of a pass without gradients
            start = self.threat.project(x + 0.001 * rng.normal(x), x)
            moved = climb(lambda m: _kl(target, model(m)), start, x, self.threat, self.steps, self.size)
        logits = model(x)
        clean = cross_entropy(logits, y, self.smoothing)
        return clean + self.beta * _kl(_log_softmax(logits), model(moved))


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at the least: a KL is a small difference, and autocast on a CPU would leave bfloat16 as it is."""
    return F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _kl(log_p: Tensor, logits: Tensor) -> Tensor:
    """KL(p ‖ softmax(logits)) per sample [b]; p by its logarithm, whose gradient is finite where p underflows."""
    return F.kl_div(_log_softmax(logits), log_p, reduction="none", log_target=True).sum(dim=1)
