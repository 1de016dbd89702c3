"""A purifier is a kernel: init, then step n times, then readout. The driver here owns the loop."""

from collections.abc import Iterator
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from .adjoint import Adjoint, Checkpointed
from .noise import Key, Rng, as_rng

State = TypeVar("State", bound=tuple)


@runtime_checkable
class Purifier(Protocol[State]):
    """Cleans images. Pure in (state, noise): the same arguments give the same result, whatever the batch.

    A state is a tuple (a NamedTuple, usually) of tensors whose first axis is the batch, or None. The driver hands every
    call an ``rng`` of its own, so a purifier that draws once per call needs no names; one that draws twice folds.
    Fields that a step does not change are passed on as the same object, which lets checkpoints share them.
    """

    @property
    def n_steps(self) -> int: ...

    def init(self, x: Tensor, rng: Rng) -> State: ...

    def step(self, i: int, state: State, rng: Rng) -> State: ...

    def readout(self, state: State) -> Tensor: ...


def purify(
    purifier: Purifier, x: Tensor, rng: Rng | Key | int | None = None, *, adjoint: Adjoint | None = None
) -> Tensor:
    """Cleans images x ([b, c, h, w] in [0, 1]) and returns images of the same shape.

    ``rng`` is a seed, a Key, an Rng, or None for fresh noise. ``adjoint`` says how the result is differentiated with
    respect to x; the default is exact with one image of memory per step. Gradients with respect to the purifier's own
    weights exist under ``Direct`` only.
    """
    return (adjoint or Checkpointed())(purifier, x, as_rng(rng, len(x)))


def trace(purifier: Purifier, x: Tensor, rng: Rng | Key | int | None = None) -> Iterator[Tensor]:
    """Yields what would be read out after init and after every step: n_steps + 1 batches, for people to look at."""
    rng = as_rng(rng, len(x))
    state = purifier.init(x, rng.fold("init"))
    yield purifier.readout(state)
    for i in range(purifier.n_steps):
        state = purifier.step(i, state, rng.fold("step", i))
        yield purifier.readout(state)
