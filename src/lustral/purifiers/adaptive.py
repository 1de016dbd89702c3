"""Adaptive Denoising Purification (ADP, Yoon, Hwang and Lee, ICML 2021).

Noise screening, then deterministic ascent along a unit-scaled score field F (sigma·score, minus the noise estimate)
with a step size that adapts to how fast the field falls:

    z = ⟨F(x), F(x + δF(x))⟩ / |F(x)|²        α = clip(λδ/(1 − z), α_min, α_max)        x ← x + α·F(x)

so that a first-order model of the field loses the share λ of its length per step. A sample whose α is at most τ stays
frozen. Cost: two field calls per step and moving sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.noise import Rng
from ..core.whole import numbers
from ..denoisers.base import Denoiser, column, denoise, reach

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class UnitField:
    """F(x) = (D(x, sigma) − x)/sigma at a fixed sigma: sigma·score, of about unit variance per pixel where x is noisy.

    ADP's constants are in this scaling: its code switches the noise conditioning of NCSNv2 off. For an unconditional
    network (``NCSN``) the choice of sigma does not matter.
    """

    denoiser: Denoiser = field(metadata={"role": "weights"})
    sigma: float = 0.25

    def __post_init__(self) -> None:
        numbers(self)
        most = reach(self.denoiser)[1]
        if self.sigma > most * (1 + 1e-6):
            raise UserError(f"ADP's field is asked at sigma={self.sigma:g}, beyond the {most:.3g} of this denoiser.")

    def __call__(self, x: Tensor) -> Tensor:
        return (denoise(self.denoiser, x, x.new_full((len(x),), self.sigma)) - x) / self.sigma


class AdaptiveState(NamedTuple):
    """Images, which of them still move, and their last step size α (0 before the first)."""

    x: Tensor
    moving: Tensor
    alpha: Tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)


@dataclass(frozen=True)
class Adaptive:
    """ADP with the paper's constants (δ, λ, α range, τ, T); ``sigma`` is the screening noise.

    A sample with a zero field is at rest and is frozen (the published code makes it NaN). Where the field grows along
    the step (z > 1) α is α_min, so the sample freezes, as published.
    """

    field: Field = field(metadata={"role": "weights"})
    sigma: float = 0.25
    steps: int = 10
    delta: float = 1e-3
    lam: float = 0.05
    alpha_min: float = 1e-5
    alpha_max: float = 0.1
    tau: float = 1e-3
    screen: str = "gaussian"

    def __post_init__(self) -> None:
        numbers(self)
        if not self.sigma >= 0 or self.steps < 1 or not self.delta > 0 or not 0 < self.lam < 1:
            raise UserError("ADP needs sigma ≥ 0, steps ≥ 1, delta > 0 and 0 < lam < 1.")
        if not 0 <= self.alpha_min <= self.alpha_max:
            raise UserError(f"ADP needs 0 ≤ alpha_min ≤ alpha_max, not [{self.alpha_min}, {self.alpha_max}].")
        if self.screen not in ("gaussian", "binary"):
            raise UserError(f"ADP screening must be 'gaussian' or 'binary', not {self.screen!r}.")

    @property
    def n_steps(self) -> int:
        return self.steps

    @property
    def calls(self) -> int:
        """Network calls for an image that does not come to rest."""
        return 2 * self.steps

    def init(self, x: Tensor, rng: Rng) -> AdaptiveState:
        if self.sigma:
            # Binary noise has the mean absolute value of the Gaussian, σ·√(2/π), as published.
            z = rng.normal(x) if self.screen == "gaussian" else (2 / torch.pi) ** 0.5 * rng.sign(x)
            x = (x + self.sigma * z).clamp(0, 1)
        return AdaptiveState(x, torch.ones(len(x), dtype=torch.bool, device=x.device), x.new_zeros(len(x)))

    def step(self, i: int, state: AdaptiveState, rng: Rng) -> AdaptiveState:
        rows = state.moving.nonzero()[:, 0]
        if not len(rows):
            return state
        everyone = len(rows) == len(state.x)
        x = state.x if everyone else state.x[rows]
        f = self.field(x)
        alpha = self._step_size(f, self.field(x + self.delta * f))
        moving = alpha.detach() > self.tau
        moved = torch.where(column(moving, x).bool(), (x + column(alpha, x) * f).clamp(0, 1), x)
        if everyone:
            return AdaptiveState(moved, moving, alpha)
        return AdaptiveState(
            state.x.index_copy(0, rows, moved),
            state.moving.index_copy(0, rows, moving),
            state.alpha.index_copy(0, rows, alpha),
        )

    def _step_size(self, f: Tensor, ahead: Tensor) -> Tensor:
        """α per sample; its gradient is part of the exact one (clipped values pass none)."""
        length = _dot(f, f)
        fall = length - _dot(f, ahead)  # |F|²(1 − z), without a division that a zero field would spoil
        growing = fall < 0
        step = self.lam * self.delta * length / torch.where(fall > 0, fall, 1.0)
        step = torch.where(fall > 0, step, torch.where(growing | (length == 0), self.alpha_min, self.alpha_max))
        return step.clamp(self.alpha_min, self.alpha_max)

    def readout(self, state: AdaptiveState) -> Tensor:
        return state.x


@dataclass(frozen=True)
class AdaptivePublished:
    """ADP as its released code runs: after every step all images, frozen ones too, are stretched about mid-grey.

    The code maps images to the field's grid, x·255/256 + 1/512, once before the steps, but maps back after every one,
    so contrast grows by (256/255)^(T − 1). (It also stops where the whole batch has frozen, which would make an image
    depend on its neighbours; here the stretching goes on to step T.) A reproduction, not a recommendation; use
    ``Adaptive``.
    """

    adp: Adaptive

    @property
    def n_steps(self) -> int:
        return self.adp.n_steps

    @property
    def calls(self) -> int:
        return self.adp.calls

    def init(self, x: Tensor, rng: Rng) -> AdaptiveState:
        state = self.adp.init(x, rng)
        return state._replace(x=state.x * 255 / 256 + 1 / 512)

    def step(self, i: int, state: AdaptiveState, rng: Rng) -> AdaptiveState:
        after = self.adp.step(i, state, rng)
        return after._replace(x=(after.x * 256 / 255 - 1 / 510).clamp(0, 1))

    def readout(self, state: AdaptiveState) -> Tensor:
        return state.x
