"""Many rows through a network of limited width: kept full where samples need different numbers of steps, and in memory.

``Lanes`` is an adjoint around another one. Rows are independent and noise is addressed, so which rows run together
changes nothing but rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from . import memory
from .adjoint import Adjoint, Checkpointed, Direct
from .errors import UserError
from .inference import differentiable
from .noise import Rng, veiled
from .purifier import Purifier, alike
from .whole import numbers

T = TypeVar("T")


@runtime_checkable
class Foreseeing(Protocol):
    """A purifier that knows, once begun, how many network calls each sample will take (None: all the same)."""

    def effort(self, state: Any) -> Tensor | None: ...


@dataclass(frozen=True)
class Lanes:
    """At most ``width`` rows at a time; fewer, by halves, where memory does not suffice.

    Without gradients and with an exact adjoint, rows that need about as many steps run together, longest first: all
    rows are begun, a purifier's ``effort(state)`` says how many steps each will take, and a row that is done costs
    nothing more. So every lane is busy nearly until its fellows are done, and a batch in which one noisy image needs
    100 steps and the others 30 does not run 100 steps at full width.
    """

    width: int = 64
    inner: Adjoint = Checkpointed()

    def __post_init__(self) -> None:
        numbers(self)
        if self.width < 1:
            raise UserError(f"There must be at least 1 lane, not {self.width}.")

    @differentiable
    def __call__(self, purifier: Purifier, x: Tensor, rng: Rng) -> Tensor:
        rng = veiled(rng)
        plain = isinstance(self.inner, Direct | Checkpointed) and not (torch.is_grad_enabled() and x.requires_grad)
        if plain and len(x) > 1 and isinstance(purifier, Foreseeing):
            with torch.set_grad_enabled(torch.is_grad_enabled() and isinstance(self.inner, Direct)):
                return self._sorted(purifier, x, rng)
        inner = shared(self.inner, max(1, -(-len(x) // self.width)))
        return gather(in_parts(lambda part: inner(purifier, x[part], rng[part]), torch.arange(len(x)), self.width))

    def _sorted(self, purifier: Foreseeing, x: Tensor, rng: Rng) -> Tensor:
        rows = torch.arange(len(x))
        begun = in_parts(lambda part: purifier.init(x[part], rng[part].fold("init")), rows, self.width)
        state = _joined([state for _, state in begun], torch.cat([part for part, _ in begun]).argsort())
        effort = purifier.effort(state)
        order = rows if effort is None else effort.cpu().argsort(descending=True, stable=True)

        def finish(part: Tensor) -> Tensor:
            own = _rows(state, part)
            for i in range(purifier.n_steps):
                own = purifier.step(i, own, rng[part].fold("step", i))
            return purifier.readout(own)

        return gather(in_parts(finish, order, self.width))


def shared(adjoint: Adjoint, parts: int) -> Adjoint:
    """An adjoint, or the one around which it is, with a part of its memory budget: the parts' graphs live together."""
    if isinstance(adjoint, Checkpointed):
        return replace(adjoint, budget=adjoint.budget // parts)
    inner = getattr(adjoint, "adjoint", None)
    return adjoint if inner is None else replace(adjoint, adjoint=shared(inner, parts))


def in_parts(job: Callable[[Tensor], T], rows: Tensor, width: int) -> list[tuple[Tensor, T]]:
    """(rows, result) of a job for parts of the rows, each as wide as ``width`` and memory allow; no rows are a part."""
    done, start = [], 0
    while start < len(rows) or not done:
        part = rows[start : start + width]
        try:
            done.append((part, job(part)))
            start += len(part)
        except memory.FAILURES as e:
            if len(part) <= 1 or not memory.lacking(e):
                raise
            width = (len(part) + 1) // 2
    return done


def gather(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Results of parts in the order of their rows."""
    order = torch.cat([rows for rows, _ in parts])
    return torch.cat([result for _, result in parts])[order.argsort()]


def _rows(state, rows: Tensor):
    """Some rows of a state; what is no tensor belongs to all."""
    if isinstance(state, Tensor):
        return state[rows.to(state.device)]
    if isinstance(state, tuple):
        return alike(state, [_rows(part, rows) for part in state])
    return state


def _joined(states: list, order: Tensor):
    """One state from those of parts, its rows put in order."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.cat(states)[order.to(first.device)]
    if isinstance(first, tuple):
        return alike(first, [_joined(list(parts), order) for parts in zip(*states, strict=True)])
    return first
