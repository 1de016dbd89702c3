"""Randomness as an address, not a stream.

A noise value is a pure function of (seed, named path, kind, sample id, draw, element). The same address gives the same
bits in any batch, order, shard or recomputation, so checkpointed gradients need no saved generator state, verdicts can
be replayed, and resumed or sharded runs agree with uninterrupted ones.

The generator is NumPy's Philox4x64-10 (Salmon et al., SC 2011): a 128-bit key, hashed with BLAKE2b from the seed, the
path and the kind of distribution, and a 256-bit counter that holds the sample id and the draw in words of their own.
PyTorch's CPU generator is not used because it keeps only 32 bits of a seed and has no address for a sample.
"""

import hashlib
import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from .errors import UserError
from .whole import whole

Name = str | int
Address = tuple[bytes, int, int]

_audit: ContextVar["Counter[Address] | None"] = ContextVar("lustral_noise_audit", default=None)


PLACE = "A place in a key, unless it is a text,"


def _encode(names: tuple[Name, ...]) -> bytes:
    """Injective: every element carries its type and its length, so ("ab", "c") and ("a", "bc") differ."""
    parts = []
    for name in names:
        body = name.encode() if isinstance(name, str) else str(whole(name, PLACE)).encode()
        parts.append(b"%c%d:%s" % (b"s" if isinstance(name, str) else b"i", len(body), body))
    return b"".join(parts)


@dataclass(frozen=True)
class Key:
    """The name of a place where noise comes from: a seed and a path of strings and integers."""

    seed: int
    path: tuple[Name, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole(self.seed, "A seed"))

    def fold(self, *names: Name) -> "Key":
        """The key of a place below this one."""
        return Key(self.seed, self.path + names)

    def rng(self, ids: Tensor | int, draw: int = 0) -> "Rng":
        """Addressed randomness for the samples ``ids`` ([n] stable integers, or n for 0..n-1)."""
        ids = _ids(ids)
        return Rng(self, ids, torch.full_like(ids, whole(draw, "A draw")))

    @staticmethod
    def secret() -> "Key":
        """A key with 128 fresh bits from the operating system, which nobody can guess.

        Once made it is a key like any other: whoever forks, copies or pickles it has the same noise in both places.
        """
        return Key(secrets.randbits(128))

    def philox(self, kind: str) -> np.ndarray:
        """The 128-bit Philox key of one kind of distribution at this address, as two 64-bit words."""
        text = _encode((self.seed, *self.path, kind))
        return np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), dtype=np.uint64)


def _ids(ids: Tensor | Sequence[int] | int) -> Tensor:
    """Ids [n] as int64; a number n stands for 0 to n − 1."""
    if isinstance(ids, int | float | np.generic | str) or (isinstance(ids, Tensor) and not ids.dim()):
        return torch.arange(whole(ids, "A number of images", 0))
    found = torch.as_tensor(ids)
    if found.dim() != 1 or (found.numel() and (found.is_floating_point() or found.dtype == torch.bool)):
        raise UserError(f"Ids of images are whole numbers [n], not {found.dtype} of shape {tuple(found.shape)}.")
    return found.long().cpu()


@dataclass(frozen=True, eq=False)
class Rng:
    """Randomness for a batch: one key, and per row a sample id and a draw.

    A row's noise depends on its own (key, id, draw) alone. Values are drawn in float32 and cast, so that a float64
    recomputation sees the same noise.
    """

    key: Key
    ids: Tensor
    draws: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def fold(self, *names: Name) -> "Rng":
        """The same rows at a place below this one."""
        return Rng(self.key.fold(*names), self.ids, self.draws)

    def __getitem__(self, index: Tensor | slice) -> "Rng":
        """The rows that ``index`` (slice, mask or integers) selects."""
        index = index.cpu() if isinstance(index, Tensor) else index
        return Rng(self.key, self.ids[index], self.draws[index])

    def repeat(self, draws: int) -> "Rng":
        """Images × draws: every row ``draws`` times in a run, draw d of old draw k becoming k·draws + d."""
        inner = torch.arange(draws).repeat(len(self))
        return Rng(self.key, self.ids.repeat_interleave(draws), self.draws.repeat_interleave(draws) * draws + inner)

    def again(self, times: int) -> "Rng":
        """Every row ``times`` times in a run, with the very same noise."""
        return Rng(self.key, self.ids.repeat_interleave(times), self.draws.repeat_interleave(times))

    def at(self, key: Key) -> "Rng":
        """The same samples at another key, each at its first draw."""
        return key.rng(self.ids)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape ([n, ...]), dtype and device of ``like``."""
        return self._fill("normal", like, lambda gen, row: gen.standard_normal(dtype=np.float32, out=row))

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform noise on [0, 1) of the shape, dtype and device of ``like``."""
        return self._fill("uniform", like, lambda gen, row: gen.random(dtype=np.float32, out=row))

    def sign(self, like: Tensor) -> Tensor:
        """Rademacher noise, -1 or +1 with probability one half each."""
        half = self._fill("sign", like, lambda gen, row: gen.random(dtype=np.float32, out=row))
        return torch.where(half < 0.5, -1.0, 1.0).to(like)

    def _fill(self, kind: str, like: Tensor, draw_row) -> Tensor:
        if like.shape[0] != len(self):
            raise UserError(f"The noise source has {len(self)} rows but the batch has {like.shape[0]}; index it alike.")
        out = np.empty((len(self), like[0].numel() if len(self) else 0), dtype=np.float32)
        key = self.key.philox(kind)
        _note(key, self.ids, self.draws)
        _rows.take(key)
        for row, sample, draw in zip(out, self.ids.tolist(), self.draws.tolist(), strict=True):
            draw_row(_rows.at(sample, draw), row)
        return torch.from_numpy(out).view(like.shape).to(like)


@dataclass(frozen=True, eq=False)
class Mixed:
    """Two sources for one batch: the place ``part`` (``init`` or ``step`` of a purifier) draws from ``known``.

    Everything else draws from ``fresh``. It takes the place of an ``Rng`` where the two are reached by folding.
    """

    fresh: Rng
    known: Rng
    part: str

    @property
    def ids(self) -> Tensor:
        return self.fresh.ids

    def __len__(self) -> int:
        return len(self.fresh)

    def fold(self, *names: Name) -> "Rng | Mixed":
        if names[0] in ("init", "step"):
            return (self.known if names[0] == self.part else self.fresh).fold(*names)
        return Mixed(self.fresh.fold(*names), self.known.fold(*names), self.part)

    def __getitem__(self, index: Tensor | slice) -> "Mixed":
        return Mixed(self.fresh[index], self.known[index], self.part)

    def repeat(self, draws: int) -> "Mixed":
        return Mixed(self.fresh.repeat(draws), self.known.repeat(draws), self.part)

    def again(self, times: int) -> "Mixed":
        return Mixed(self.fresh.again(times), self.known.again(times), self.part)

    def at(self, key: Key) -> Rng:
        return self.fresh.at(key)


class Veiled:
    """What a purifier is handed: noise that does not say where it is.

    Its values are those of the ``Rng`` behind it, but the seed, the path, the ids and the draws cannot be asked for, so
    no purifier can tell by them whether it is attacked or judged, which draw it is in, or whether its noise is known.
    Whoever reads the memory of the process will find them: this is an interface and no prison.
    """

    __slots__ = ("__weakref__",)

    def __len__(self) -> int:
        return len(_behind[self])

    def fold(self, *names: Name) -> "Veiled":
        """The same rows at a place below this one."""
        return veiled(_behind[self].fold(*names))

    def __getitem__(self, index: Tensor | slice) -> "Veiled":
        """The rows that ``index`` (slice, mask or integers) selects."""
        return veiled(_behind[self][index])

    def repeat(self, draws: int) -> "Veiled":
        """Every row ``draws`` times in a run, each with noise of its own."""
        return veiled(_behind[self].repeat(draws))

    def at(self, key: Key) -> "Veiled":
        """The same samples at another key, each at its first draw."""
        return veiled(_behind[self].at(key))

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape ([n, ...]), dtype and device of ``like``."""
        return _behind[self].normal(like)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform noise on [0, 1) of the shape, dtype and device of ``like``."""
        return _behind[self].uniform(like)

    def sign(self, like: Tensor) -> Tensor:
        """Rademacher noise, -1 or +1 with probability one half each."""
        return _behind[self].sign(like)

    def __copy__(self) -> "Veiled":
        return self

    def __deepcopy__(self, memo: dict) -> "Veiled":
        return self

    def __reduce__(self):
        raise TypeError("Noise that is handed to a purifier stays in its process; keep the Key that you made instead.")


_behind: "WeakKeyDictionary[Veiled, Rng | Mixed]" = WeakKeyDictionary()


def veiled(rng: "Rng | Mixed | Veiled") -> Veiled:
    """The same noise without its address."""
    if isinstance(rng, Veiled):
        return rng
    made = Veiled()
    _behind[made] = rng
    return made


class _Rows(threading.local):
    """This thread's Philox generator, moved from address to address; one built per row would cost five times more."""

    def __init__(self):
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state
        self._counter = self._state["state"]["counter"]

    def take(self, key: np.ndarray) -> None:
        """Uses a key for the addresses that follow."""
        self._state["state"]["key"] = key

    def at(self, sample: int, draw: int) -> np.random.Generator:
        """The generator at the start of an address's own noise."""
        self._counter[:] = (0, draw & 0xFFFFFFFFFFFFFFFF, sample & 0xFFFFFFFFFFFFFFFF, 0)
        self._bits.state = self._state
        return self._generator


_rows = _Rows()


def _note(key: np.ndarray, ids: Tensor, draws: Tensor) -> None:
    seen = _audit.get()
    if seen is not None:
        name = key.tobytes()
        seen.update((name, i, d) for i, d in zip(ids.tolist(), draws.tolist(), strict=True))


@contextmanager
def audit() -> Iterator["Counter[Address]"]:
    """Counts how often each address is drawn inside the block; a count above one is a bug (two uses, one noise)."""
    token = _audit.set(Counter())
    try:
        yield _audit.get()
    finally:
        _audit.reset(token)


@contextmanager
def replaying() -> Iterator[None]:
    """Marks a recomputation, which draws the same addresses again on purpose."""
    token = _audit.set(None)
    try:
        yield
    finally:
        _audit.reset(token)


def as_rng(rng: "Rng | Mixed | Veiled | Key | int | None", n: int) -> "Rng | Mixed | Veiled":
    """What people may pass for randomness: an Rng, a Key, a seed, or None for noise that nobody can replay."""
    if isinstance(rng, Rng | Mixed | Veiled):
        return rng
    return as_key(rng).rng(n)


def as_key(key: "Key | int | None") -> "Key":
    """A key, that of a seed, or None for one that nobody knows."""
    return Key.secret() if key is None else key if isinstance(key, Key) else Key(key)
