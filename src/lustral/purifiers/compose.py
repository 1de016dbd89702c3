"""Purifiers from purifiers, and from plain functions: ``chain``, ``repeat``, ``when``, ``from_function``."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import outputs
from ..core.errors import UserError
from ..core.noise import Key, Rng
from ..core.purifier import Purifier
from ..core.whole import numbers, whole
from .adaptive import Field


class ChainState(NamedTuple):
    """Which stage runs, and that stage's state."""

    stage: int
    inner: Any


@dataclass(frozen=True)
class Chain:
    """One purifier after another. Going over from one to the next is a step of its own, without network calls."""

    stages: tuple[Purifier, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise UserError("A chain needs at least one purifier.")

    @cached_property
    def _plan(self) -> list[tuple[int, int]]:
        """(stage, its step) for every step; step -1 enters a stage from the one before."""
        steps = [(k, i) for k, stage in enumerate(self.stages) for i in range(-1, stage.n_steps)]
        return steps[1:]

    @property
    def n_steps(self) -> int:
        return len(self._plan)

    def init(self, x: Tensor, rng: Rng) -> ChainState:
        return ChainState(0, self.stages[0].init(x, rng))

    def step(self, i: int, state: ChainState, rng: Rng) -> ChainState:
        stage, inner = self._plan[i]
        if inner < 0:
            return ChainState(stage, self.stages[stage].init(self.readout(state), rng))
        return ChainState(stage, self.stages[stage].step(inner, state.inner, rng))

    def readout(self, state: ChainState) -> Tensor:
        return self.stages[state.stage].readout(state.inner)


def chain(*purifiers: Purifier) -> Chain:
    """Runs purifiers one after another."""
    return Chain(tuple(purifiers))


def repeat(purifier: Purifier, rounds: int) -> Purifier:
    """Runs a purifier ``rounds`` times, each on the last one's output and with noise of its own."""
    rounds = whole(rounds, "rounds", 1)
    return purifier if rounds == 1 else Chain((purifier,) * rounds)


@dataclass(frozen=True)
class Pinned:
    """A purifier whose noise is that of ``key`` and the image's id at every call: a deterministic twin.

    What stays of a defence when its noise is no secret. All draws of a vote are one.
    """

    inner: Purifier
    key: Key

    @property
    def n_steps(self) -> int:
        return self.inner.n_steps

    def init(self, x: Tensor, rng: Rng) -> Any:
        return self.inner.init(x, rng.at(self.key).fold("init"))

    def step(self, i: int, state: Any, rng: Rng) -> Any:
        return self.inner.step(i, state, rng.at(self.key).fold("step", i))

    def readout(self, state: Any) -> Tensor:
        return self.inner.readout(state)


class WhenState(NamedTuple):
    """The input, and for both branches the rows that take it and their state (None where no row does)."""

    x: Tensor
    then_rows: Tensor
    then: Any
    else_rows: Tensor
    otherwise: Any


@dataclass(frozen=True)
class When:
    """Samples for which ``condition(x) -> bool [b]`` holds go through ``then``, others through ``otherwise``.

    Without ``otherwise`` they pass unchanged and cost nothing. The decision itself has no gradient.
    """

    condition: Callable[[Tensor], Tensor]
    then: Purifier
    otherwise: Purifier | None = None

    @property
    def n_steps(self) -> int:
        return max(self.then.n_steps, self.otherwise.n_steps if self.otherwise else 0)

    def init(self, x: Tensor, rng: Rng) -> WhenState:
        with torch.no_grad():
            chosen = self.condition(x)
        yes, no = chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]
        then = self.then.init(x[yes], rng[yes].fold("then")) if len(yes) else None
        otherwise = self.otherwise.init(x[no], rng[no].fold("else")) if len(no) and self.otherwise else None
        return WhenState(x, yes, then, no, otherwise)

    def step(self, i: int, state: WhenState, rng: Rng) -> WhenState:
        then, otherwise = state.then, state.otherwise
        if then is not None and i < self.then.n_steps:
            then = self.then.step(i, then, rng[state.then_rows].fold("then"))
        if otherwise is not None and i < self.otherwise.n_steps:
            otherwise = self.otherwise.step(i, otherwise, rng[state.else_rows].fold("else"))
        return state._replace(then=then, otherwise=otherwise)

    def readout(self, state: WhenState) -> Tensor:
        x = state.x
        if state.then is not None:
            x = x.index_copy(0, state.then_rows, self.then.readout(state.then))
        if state.otherwise is not None:
            x = x.index_copy(0, state.else_rows, self.otherwise.readout(state.otherwise))
        return x


def when(condition: Callable[[Tensor], Tensor], then: Purifier, otherwise: Purifier | None = None) -> When:
    """Chooses a purifier per sample."""
    return When(condition, then, otherwise)


@dataclass(frozen=True)
class FieldNorm:
    """ADP's detector: is |F(x)|₂ above ``threshold``? The published thresholds (25, 35) are for CIFAR-10's field."""

    field: Field = field(metadata={"role": "weights"})
    threshold: float = 25.0

    __post_init__ = numbers

    def __call__(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.field(x).flatten(1), dim=1) > self.threshold


class Images(NamedTuple):
    """A state that is just images."""

    x: Tensor


@dataclass(frozen=True)
class Function:
    """A purifier from a plain function of (images, rng) or of images alone; see ``from_function``."""

    function: Callable[..., Tensor]
    steps: int = 1
    uses_rng: bool = True

    __post_init__ = numbers

    @property
    def n_steps(self) -> int:
        return self.steps

    def init(self, x: Tensor, rng: Rng) -> Images:
        return Images(x)

    def step(self, i: int, state: Images, rng: Rng) -> Images:
        x = state.x.clone()  # which the function may change in place
        out = self.function(x, rng) if self.uses_rng else self.function(x)
        return Images(outputs.cleaned(out, state.x))

    def readout(self, state: Images) -> Tensor:
        return state.x


def from_function(function: Callable[..., Tensor], *, steps: int = 1) -> Function:
    """Lifts ``f(images)`` or ``f(images, rng)`` to a purifier that applies it ``steps`` times.

    Take noise from ``rng`` (``rng.normal(images)``), not from torch: then gradients, replays and batches stay exact.
    """
    given = _arguments(function)
    if len(given) not in (1, 2):
        raise UserError(f"A purifier function takes (images) or (images, rng), not ({', '.join(given)}).")
    return Function(function, whole(steps, "steps", 0), len(given) == 2)


def _arguments(function: Callable) -> list[str]:
    """What a function is to be given: its arguments without a default, and ``rng``; built-ins get images."""
    try:
        parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except ValueError:
        return ["images"]
    by_position = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not by_position and any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return ["images"]  # as autograd functions have it
    return [p.name for p in by_position if p.default is p.empty or p.name == "rng"]
