"""How to train, as plain data; imports nothing heavy, so that the command line can show it."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from ..core.errors import UserError, unknown


@dataclass(frozen=True)
class Recipe:
    """How to train: every choice that can change the weights."""

    steps: int = 4000
    """Optimiser steps."""
    batch: int = 128
    """Images a step, over all processes."""
    accumulate: int = 1
    """Parts that a batch is computed in to spare memory, one after another; batch normalisation sees one at a time."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum 0.9."""
    lr: float = 2e-3
    """Peak learning rate."""
    beta1: float = 0.9
    """AdamW's first decay (ADDT: 0.95)."""
    beta2: float = 0.999
    """AdamW's second decay."""
    weight_decay: float = 0.01
    """Weight decay, of matrices and filters only: decoupled for AdamW, in the gradient for SGD."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """How the rate goes from its peak to the end: to 0 along a cosine or a line, or not at all."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises linearly from 0."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: not clipped."""
    ema: float = 0.999
    """Largest decay of the exponential moving average of the weights, which is what is shipped; 0: none."""
    ema_power: float = 0.0
    """The average's warm-up: 1 − (1 + n)^−power after n updates (ADDT: 0.75); 0: (2 + n)/(11 + n), as score_sde's."""
    ema_half_life: float = 0.0
    """If not 0, images after which a weight counts half, in place of ``ema``; at most 5 % of those before (EDM)."""
    flip: bool = False
    """Augmentation: mirror every other image."""
    crop: int = 0
    """Augmentation: random translation by up to this many whole pixels, reflected at the border."""
    shift: float = 0.0
    """Augmentation: random translation by up to this many pixels, bilinearly."""
    cutout: int = 0
    """Augmentation: a grey square of this many pixels at a random place."""
    extra_share: float = 0.0
    """Share of every batch that comes from the extra (generated) images, where there are any."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic (autocast); weights and losses are float32."""
    compile: bool = False
    """Compile the network (torch.compile)."""
    channels_last: bool = False
    """Keep images and filters in channels-last order."""
    stored: Literal["float32", "float16"] = "float32"
    """How the finished weights are rounded and written; float16 halves the file."""
    seed: int = 0
    """Seed of the weights, the order, the augmentation and the noise."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            if choices and value not in choices:
                raise unknown(field.name, value, choices)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{field.name} must be a finite number, not {value}.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must lie between 0 and 2^63, not {self.seed}.")
        if self.steps < 1 or self.batch < 1 or self.lr <= 0 or not 0 <= self.ema < 1:
            raise UserError("A recipe needs steps ≥ 1, batch ≥ 1, lr > 0 and 0 ≤ ema < 1.")
        if not 1 <= self.accumulate <= self.batch:
            raise UserError(f"accumulate must lie between 1 and the batch ({self.batch}), not {self.accumulate}.")
        if not (0 <= self.warmup < 1 and 0 <= self.extra_share < 1 and self.clip >= 0):
            raise UserError("A recipe needs 0 ≤ warmup < 1, 0 ≤ extra_share < 1 and clip ≥ 0.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise UserError("AdamW needs 0 ≤ beta1 < 1 and 0 ≤ beta2 < 1.")
        least = self.weight_decay, self.ema_power, self.ema_half_life, self.crop, self.shift, self.cutout
        if min(least) < 0:
            raise UserError("weight_decay, ema_power, ema_half_life, crop, shift and cutout cannot be negative.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, int(self.steps * self.warmup)) if self.warmup else 0
        if step < warm:
            return self.lr * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        fall = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
        return self.lr * fall[self.schedule]

    def decay(self, step: int) -> float:
        """The decay of the average at a step, counted from 0 as by diffusers and EDM; score_sde is one ahead."""
        if self.ema_half_life:
            return 0.5 ** (self.batch / min(self.ema_half_life, max(1e-8, 0.05 * step * self.batch)))
        if self.ema_power:
            return min(self.ema, 1 - (1 + step) ** -self.ema_power)
        return min(self.ema, (2 + step) / (11 + step))
