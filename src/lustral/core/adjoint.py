"""How to differentiate a purifier: an argument of the driver, never a property of the method.

``Direct`` and ``Checkpointed`` are exact (discretise, then differentiate) and agree bit for bit. ``Identity`` (BPDA),
``Skip`` (blind) and ``Surrogate`` are approximations that attacks use, under names that say so.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import UserError
from .inference import differentiable
from .noise import Rng, replaying, veiled
from .purifier import Purifier, alike
from .whole import numbers

State = Any
Step = Callable[[int, State], State]


class Adjoint(Protocol):
    """Runs a purifier on x and decides what the backward pass will be."""

    def __call__(self, purifier: Purifier, x: Tensor, rng: Rng) -> Tensor: ...


@dataclass(frozen=True)
class Direct:
    """Plain autograd: exact, keeps every activation, and the only one that reaches the purifier's weights."""

    @differentiable
    def __call__(self, purifier: Purifier, x: Tensor, rng: Rng) -> Tensor:
        rng = veiled(rng)
        state = purifier.init(x, rng.fold("init"))
        for i in range(purifier.n_steps):
            # A node per step makes gradients accumulate step by step, in the order of every other exact adjoint.
            state = _map(lambda t: t.view_as(t) if t.requires_grad else t, state)
            state = purifier.step(i, state, rng.fold("step", i))
        return purifier.readout(state)


@dataclass(frozen=True)
class Checkpointed:
    """Exact, with one state kept per step; the backward pass recomputes a step at a time from the same noise.

    Within ``budget`` bytes the graphs of the last steps are kept instead of recomputed: N forward calls, then N - K
    recomputations and N backward ones. Bit-equal to ``Direct`` either way. How many fit is guessed from the first two
    steps; where later ones are larger (in a ``Chain``), the oldest are let go.
    """

    budget: int = field(default=0, metadata={"role": "runtime"})

    __post_init__ = numbers

    @differentiable
    def __call__(self, purifier: Purifier, x: Tensor, rng: Rng) -> Tensor:
        rng = veiled(rng)
        state = purifier.init(x, rng.fold("init"))

        def step(i: int, state: State) -> State:
            return purifier.step(i, state, rng.fold("step", i))

        if not (torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(state))):
            with torch.no_grad():  # weights may want gradients, which exist under Direct only
                for i in range(purifier.n_steps):
                    state = step(i, state)
                return purifier.readout(state)
        run = _Run(step, purifier.n_steps, self.budget, state)
        out = _Unroll.apply(run, *_tensors(state))
        return purifier.readout(_rebuild(run.final, iter(out)))


@dataclass(frozen=True)
class Identity:
    """Backward pass differentiable approximation (BPDA, Athalye et al. 2018): the purifier's Jacobian is taken as 1."""

    def __call__(self, purifier: Purifier, x: Tensor, rng: Rng) -> Tensor:
        with torch.no_grad():
            clean = Direct()(purifier, x, rng)
        return _StraightThrough.apply(x, clean)


@dataclass(frozen=True)
class Skip:
    """Leaves the purifier out, forward and backward: an attack that does not know of it (blind)."""

    def __call__(self, purifier: Purifier, x: Tensor, rng: Rng) -> Tensor:
        return x


@dataclass(frozen=True)
class Surrogate:
    """Runs another, cheaper purifier instead (fewer steps, usually), forward and backward (Lee and Kim, ICCV 2023)."""

    purifier: Purifier

    def __call__(self, purifier: Purifier, x: Tensor, rng: Rng) -> Tensor:
        return Checkpointed()(self.purifier, x, rng)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@dataclass
class _Run:
    """What the forward pass of ``_Unroll`` leaves for the backward pass."""

    step: Step
    n: int
    budget: int
    start: State
    final: State = None
    inputs: list[State] = field(default_factory=list)
    graphs: dict[int, tuple[State, State]] = field(default_factory=dict)

    def forward(self, state: State) -> State:
        before, shared, sizes, keep_from = {}, frozenset(), {}, self.n
        for i in range(self.n):
            self.inputs.append(state)
            if self.budget <= 0 or 2 <= i < keep_from:
                state = self.step(i, state)
                continue
            saved: dict[int, int] = {}
            with torch.autograd.graph.saved_tensors_hooks(partial(_note, saved), lambda t: t):
                self.graphs[i] = _graph(self.step, i, state)
            state = _map(Tensor.detach, self.graphs[i][1])
            if i == 1:
                shared = before.keys() & saved.keys()  # weights
                sizes[0] = _bytes(before, shared)
            before, sizes[i] = saved, _bytes(saved, shared)
            if i == 1:
                keep_from = self.n - self.budget // max(1, *sizes.values())
            while i and sum(sizes.values()) > self.budget:
                oldest = min(self.graphs)
                del self.graphs[oldest], sizes[oldest]
        return state

    def backward(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        for i in reversed(range(self.n)):
            kept = self.graphs.pop(i, None)
            if kept is None:
                with replaying():
                    kept = _graph(self.step, i, self.inputs[i])
            grads = _pull_back(*kept, grads)
        return grads


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: _Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        run.final = run.forward(_rebuild(run.start, (t.detach() for t in tensors)))
        run.start = None
        out = tuple(t.detach() for t in _tensors(run.final))
        ctx.mark_non_differentiable(*(t for t in out if not t.is_floating_point()))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = ctx.run.backward(list(grads))
        if torch.is_grad_enabled():  # somebody may want to differentiate once more
            known = [t for t in (*ctx.saved_tensors, *grads) if t is not None]
            found = [None if grad is None else _Once.apply(grad, *known) for grad in found]
        return None, *found


class _Once(torch.autograd.Function):
    """A gradient that depends on tensors, but has no gradient itself: asked for one it says so instead of zeros."""

    @staticmethod
    def forward(ctx, grad: Tensor, *known: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, _: Tensor) -> tuple[Tensor, ...]:
        raise UserError(
            "Second derivatives through a purifier exist under lustral.Direct() only: lustral.defend(..., "
            "adjoint=lustral.Direct())."
        )


def _graph(step: Step, i: int, state: State) -> tuple[State, State]:
    """One step with its autograd graph: (input state, output state)."""
    with torch.enable_grad():
        source = _map(lambda t: t.detach().requires_grad_(t.is_floating_point()), state)
        return source, step(i, source)


def _note(sizes: dict[int, int], t: Tensor) -> Tensor:
    """Notes the bytes of the storage of a tensor that a graph saves."""
    storage = t.untyped_storage()
    sizes[storage.data_ptr()] = storage.nbytes()
    return t.detach()  # a node that held its own output would hold itself, and the step's graph, for ever


def _bytes(sizes: dict[int, int], shared: Container[int]) -> int:
    """Bytes that a step's graph takes, but for what it shares with others."""
    return sum(size for place, size in sizes.items() if place not in shared)


def _pull_back(source: State, result: State, grads: list[Tensor | None]) -> list[Tensor | None]:
    """The vector-Jacobian product of one step, from gradients of its outputs to gradients of its inputs."""
    inputs = _tensors(source)
    pairs = [(t, g) for t, g in zip(_tensors(result), grads, strict=True) if g is not None and t.requires_grad]
    wanted = [t for t in inputs if t.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    outputs, seeds = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, seeds, allow_unused=True))
    return [next(found) if t.requires_grad else None for t in inputs]


def _leaves(state: State) -> Iterator[Any]:
    if isinstance(state, tuple):
        for part in state:
            yield from _leaves(part)
    else:
        yield state


def _tensors(state: State) -> list[Tensor]:
    return [leaf for leaf in _leaves(state) if isinstance(leaf, Tensor)]


def _rebuild(like: State, tensors: Iterator[Tensor]) -> State:
    """The state ``like`` with its tensors replaced in order; other leaves stay."""
    if isinstance(like, tuple):
        return alike(like, [_rebuild(part, tensors) for part in like])
    return next(tensors) if isinstance(like, Tensor) else like


def _map(change: Callable[[Tensor], Tensor], state: State) -> State:
    return _rebuild(state, (change(t) for t in _tensors(state)))
