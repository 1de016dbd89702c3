"""Which images a step sees: addressed, so that any step of any process can be found again."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..core.noise import Key


def as_floats(x: Tensor) -> Tensor:
    """Images in [0, 1] as floats, from 8-bit ones or from what they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def spread_rows(n: int, count: int) -> Tensor:
    """At most ``count`` rows from all over a set of n images, whose file may be sorted by class."""
    return torch.arange(n) if n <= count else torch.arange(count) * n // count


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images x [n, c, h, w], 8-bit (which become floats a batch at a time) or floats in [0, 1], and y [n]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return as_floats(self.x[rows]), self.y[rows]


def rows(key: Key, n: int, batch: int, step: int) -> Tensor:
    """The images of one step: epochs are shuffles addressed by their number."""
    first = step * batch
    chosen = []
    for epoch in range(first // n, (first + batch - 1) // n + 1):
        order = _order(key.fold("order", epoch), n)
        chosen.append(order[max(0, first - epoch * n) : first + batch - epoch * n])
    return torch.cat(chosen)


@lru_cache(maxsize=4)
def _order(key: Key, n: int) -> Tensor:
    """A shuffle of n images; the last ones are kept, since an epoch of 50 000 takes as long to draw as a step."""
    return key.rng(1).uniform(torch.empty(1, n))[0].argsort(stable=True)


@dataclass(frozen=True, eq=False)
class Source:
    """The real images, and beside them extra (generated) ones: a ``share`` of every batch, all but one at most."""

    real: Images
    extra: Images | None = None
    share: float = 0.0

    def batch(self, key: Key, size: int, step: int, mine: slice) -> tuple[Tensor, Tensor]:
        """The part ``mine`` of the batch of a step: x [b, c, h, w] in [0, 1] and y [b]."""
        made = min(round(size * self.share), size - 1) if self.extra is not None else 0
        real = rows(key, len(self.real), size - made, step)[mine.start : mine.stop]
        x, y = self.real.take(real)
        if not made:
            return x, y
        begin, end = max(0, mine.start - (size - made)), max(0, mine.stop - (size - made))
        more = self.extra.take(rows(key.fold("extra"), len(self.extra), made, step)[begin:end])
        return torch.cat([x, more[0]]), torch.cat([y, more[1]])
