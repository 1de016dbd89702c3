"""A defence as a module that exports and compiles: noise as plain tensors, and nothing that looks at the images.

The noise of a purification is recorded once, on a stand-in batch; the module plays it back, or takes it as inputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from .core import outputs
from .core.errors import UserError
from .core.inference import differentiable
from .core.networks import Modeless, Networks, modules_in
from .core.noise import Key, Mixed, Rng, Veiled, as_rng, veiled
from .core.purifier import Purifier
from .core.vote import Vote


class Draw(NamedTuple):
    """One draw of noise: its distribution (``normal``, ``uniform`` on [0, 1) or ``sign``) and its shape."""

    kind: str
    shape: tuple[int, ...]


class Recorder:
    """Noise that remembers its draws."""

    def __init__(self, rng: Rng | Mixed | Veiled, draws: list[tuple[Draw, Tensor]]):
        self._rng, self._draws = rng, draws

    def __len__(self) -> int:
        return len(self._rng)

    def fold(self, *names: str | int) -> "Recorder":
        return Recorder(self._rng.fold(*names), self._draws)

    def __getitem__(self, index: Tensor | slice) -> "Recorder":
        return Recorder(self._rng[index], self._draws)

    def repeat(self, draws: int) -> "Recorder":
        return Recorder(self._rng.repeat(draws), self._draws)

    def normal(self, like: Tensor) -> Tensor:
        return self._note("normal", self._rng.normal(like))

    def uniform(self, like: Tensor) -> Tensor:
        return self._note("uniform", self._rng.uniform(like))

    def sign(self, like: Tensor) -> Tensor:
        return self._note("sign", self._rng.sign(like))

    def _note(self, kind: str, value: Tensor) -> Tensor:
        self._draws.append((Draw(kind, tuple(value.shape)), value))
        return value


class Player:
    """Noise that is played back in the order in which it was recorded, wherever it is asked for."""

    def __init__(self, values: tuple[Tensor, ...]):
        self._values, self._next = values, 0

    def __len__(self) -> int:
        return self._values[0].shape[0]

    def fold(self, *names: str | int) -> "Player":
        return self

    def __getitem__(self, index: Tensor | slice) -> "Player":
        return self

    def repeat(self, draws: int) -> "Player":
        return self

    def normal(self, like: Tensor) -> Tensor:
        self._next += 1
        return self._values[self._next - 1].to(like)

    uniform = sign = normal


class Exportable(Modeless):
    """``net(x [b, c, h, w], *noise) -> logits [b, classes]``: one decision for each of a fixed number of images.

    ``draws`` says of which kinds and shapes the noise is; ``noise(rng)`` gives that of the defence under ``rng``.
    Images are taken as they are: nothing checks their range.
    """

    def __init__(self, classifier: Callable[[Tensor], Tensor], purifier: Purifier | None, vote: Vote, like: Tensor):
        """``like`` is a batch of the size and shape to come."""
        super().__init__()
        self.classifier, self.purifier, self.vote = classifier, purifier, vote
        for i, module in enumerate(modules_in((classifier, purifier))):
            self.add_module(f"inner_{i}", module)
        if not len(like):
            raise UserError("A defence is exported for a batch of some images; give one of the size to come.")
        self._like = Networks(purifier, classifier).cast(torch.full_like(like, 0.5))
        self.draws = tuple(draw for draw, _ in self._recorded(Key(0).rng(len(like))))
        self._check()

    def noise(self, rng: Rng | Key | int) -> tuple[Tensor, ...]:
        """The noise with which the module decides as the defence under ``rng`` does."""
        return tuple(value for _, value in self._recorded(as_rng(rng, len(self._like))))

    def forward(self, x: Tensor, *noise: Tensor) -> Tensor:
        if self.draws and len(x) != len(self._like):
            raise UserError(f"This module is exportable for batches of {len(self._like)}, not of {len(x)}.")
        if [tuple(value.shape) for value in noise] != [draw.shape for draw in self.draws]:
            raise UserError(
                f"This module's noise is {len(self.draws)} tensors of the shapes of its draws, as noise(rng) gives "
                f"them, not {len(noise)} of {', '.join(str(list(value.shape)) for value in noise) or 'none'}."
            )
        n, x = self.vote.draws, x.to(self._like.dtype)
        clean = self._purified(x.repeat_interleave(n, dim=0) if n > 1 else x, Player(noise))
        logits = outputs.logits(self.classifier(clean), len(clean))
        return self.vote.merge(logits.unflatten(0, (len(x), n)))

    def _purified(self, x: Tensor, rng: Recorder | Player) -> Tensor:
        if self.purifier is None:
            return x
        state = self.purifier.init(x, rng.fold("init"))
        for i in range(self.purifier.n_steps):
            state = self.purifier.step(i, state, rng.fold("step", i))
        return self.purifier.readout(state)

    @torch.no_grad()
    def _recorded(self, rng: Rng) -> list[tuple[Draw, Tensor]]:
        n, found = self.vote.draws, []
        rows = Recorder(veiled(rng.repeat(n).fold("purify")), found)
        differentiable(self._purified)(self._like.repeat_interleave(n, dim=0), rows)
        return found

    @torch.no_grad()
    def _check(self) -> None:
        """Refuses what looks into the images to decide what to do, or differentiates, on tensors without values."""
        name = type(self.purifier).__name__
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, saved_tensors_hooks(_refuse(name), lambda t: t):
            try:
                self(mode.from_tensor(self._like), *(torch.empty(draw.shape) for draw in self.draws))
            except (DataDependentOutputException, DynamicOutputShapeException) as e:
                raise UserError(
                    f"{name} or the classifier looks at the images to decide what to compute, which no exported graph "
                    "can; purifiers of fixed steps (diffpure, transforms) are exportable."
                ) from e


def _refuse(name: str) -> Callable[[Tensor], Tensor]:
    def refuse(_: Tensor) -> Tensor:
        raise UserError(f"{name} or the classifier computes gradients on its way, which no exported graph can.")

    return refuse


class Fixed(Modeless):
    """``net(x) -> logits``: an exportable defence whose noise is part of it."""

    def __init__(self, inner: Exportable, noise: tuple[Tensor, ...]):
        super().__init__()
        self.inner = inner
        for i, value in enumerate(noise):
            self.register_buffer(f"noise_{i}", value)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, *self.buffers(recurse=False))
