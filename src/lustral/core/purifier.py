"""What a purifier is: init, then step n times, then readout."""

from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from .noise import Rng, Veiled

State = TypeVar("State", bound=tuple)


@runtime_checkable
class Purifier(Protocol[State]):
    """Cleans images. Pure in (state, noise): the same arguments give the same result, whatever the batch.

    A state is a tuple (a NamedTuple, usually) of tensors whose first axis is the batch, or None. The driver hands every
    call an ``rng`` of its own, so a purifier that draws once per call needs no names; one that draws twice folds. It is
    ``Veiled``: it gives noise, and does not say whose or where.
    Fields that a step does not change are passed on as the same object, which lets checkpoints share them.
    """

    @property
    def n_steps(self) -> int: ...

    def init(self, x: Tensor, rng: Rng | Veiled) -> State: ...

    def step(self, i: int, state: State, rng: Rng | Veiled) -> State: ...

    def readout(self, state: State) -> Tensor: ...


def alike(state: tuple, parts: list) -> tuple:
    """A tuple of the kind of ``state`` with other parts, be it a NamedTuple or a plain one."""
    return tuple(parts) if type(state) is tuple else type(state)(*parts)
