"""How to train, as plain data; imports nothing heavy, so that the command line can show it."""

from dataclasses import dataclass

from ..core.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """How to train: every choice that can change the weights."""

    steps: int = 4000
    """Optimiser steps."""
    batch: int = 128
    """Images a step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW, after a linear warm-up over 5 % of the steps and before a cosine decay to 0."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    ema: float = 0.999
    """Decay of the exponential moving average of the weights, which is what is shipped."""
    shift: float = 0.0
    """Augmentation: random translation by up to this many pixels."""
    seed: int = 0
    """Seed of the weights, the order, the augmentation and the noise."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.lr <= 0 or not 0 <= self.ema < 1:
            raise UserError("A recipe needs steps ≥ 1, batch ≥ 1, lr > 0 and 0 ≤ ema < 1.")
