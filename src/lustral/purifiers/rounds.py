"""Diffusions in a row that remember the image they began with: guided by it, or with noise levels chosen from it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ..core.noise import Rng
from .compose import Chain
from .diffusion import Diffusion, TableState

Statistic = Callable[[Tensor, Rng], Tensor]


class RoundsState(NamedTuple):
    """Which stage runs, its state, the first image, and what was measured on it (None if nothing)."""

    stage: int
    inner: TableState
    first: Tensor
    seen: Tensor | None


@dataclass(frozen=True)
class Rounds(Chain):
    """A chain of diffusions, each guided by the chain's own input instead of the stage's.

    ``measure`` is called once, on that input; stages whose ``t_star`` is a function are given its result [b] instead
    of an image. Steps and noise are those of ``Chain``, so with constant times and no guidance both are the same.
    """

    stages: tuple[Diffusion, ...]
    measure: Statistic | None = field(default=None)

    def init(self, x: Tensor, rng: Rng) -> RoundsState:
        seen = None if self.measure is None else self.measure(x, rng.fold("measure"))
        return RoundsState(0, self._begin(0, x, x, seen, rng), x, seen)

    def step(self, i: int, state: RoundsState, rng: Rng) -> RoundsState:
        stage, inner = self._plan[i]
        if inner < 0:
            begun = self._begin(stage, self.readout(state), state.first, state.seen, rng)
            return state._replace(stage=stage, inner=begun)
        return state._replace(inner=self.stages[stage].step(inner, state.inner, rng))

    def effort(self, state: RoundsState) -> Tensor | None:
        """Network calls that each sample [b] will take in this stage, which go with those of all others."""
        return self.stages[state.stage].effort(state.inner)

    def _begin(self, stage: int, x: Tensor, first: Tensor, seen: Tensor | None, rng: Rng) -> TableState:
        return self.stages[stage].begin(x, x if seen is None else seen, first, rng)
