"""ADBM: adversarial diffusion bridge model (Li et al., ICLR 2025, arXiv 2408.00315).

The reverse process is to lead from the diffused *adversarial* image at time T to the clean image. On the way, at t, a
share k = ᾱ_T(1 − ᾱ_t)/(ᾱ_t(1 − ᾱ_T)) of the perturbation is left, which is sigma_t²/sigma_T² in the variance-exploding
view. There the bridge is x_t = x + sigma_t·z + k·δ, and its target u = z + k·δ/sigma_t is met by predicting x: again
the plain denoising loss on another input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.noise import Rng
from ..core.threat import Linf
from ..denoisers.base import column
from ..schedules import VP, Schedules
from .denoising import Denoising
from .inner import climb, evaluating
from .objectives import cross_entropy


def left(sigma: Tensor, end: Tensor) -> Tensor:
    """k: the share of the perturbation that is left at ``sigma`` on the way from ``end``."""
    return (sigma / end) ** 2


@dataclass(frozen=True, eq=False)
class ADBM:
    """Trains on bridges from images that fool ``guide`` after one step of denoising; ``base`` gives the weight.

    T is uniform in [t_low, t_high] and t in [t_min, T], per image (the published code draws one T for a batch, which
    would tie an image to its neighbours). The perturbation is searched with the same T, t and z that the loss then
    uses, by ``iterations`` steps of the full radius, from a uniform start.
    """

    base: Denoising
    guide: nn.Module
    schedule: Schedules = VP()
    t_low: float = 0.1
    t_high: float = 0.2
    t_min: float = 1e-3
    eps: float = 8 / 255
    iterations: int = 3

    def times(self, like: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """sigma at t and at T, [b] each."""
        end = self.t_low + (self.t_high - self.t_low) * rng.fold("end").uniform(like).double()
        t = self.t_min + (end - self.t_min) * rng.fold("level").uniform(like).double()
        return self.schedule.sigma(t).to(like), self.schedule.sigma(end).to(like)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        sigma, end = self.times(x[:, 0, 0, 0], rng)
        noise = column(sigma, x) * rng.fold("noise").normal(x)
        k = column(left(sigma, end), x)

        def bridge(moved: Tensor) -> Tensor:
            return x + noise + k * (moved - x)

        def loss(moved: Tensor) -> Tensor:
            return cross_entropy(self.guide(model(bridge(moved), sigma)), y)

        threat = Linf(self.eps)
        with evaluating(model), torch.no_grad():
            moved = climb(loss, threat.start(x, rng.fold("start")), x, threat, self.iterations, self.eps)
        return self.base.error(model, x, bridge(moved), sigma)
