"""The generators of torch, NumPy and Python that a process has only one of, from which other libraries draw."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy.random as numpys
import torch
from torch.random import fork_rng

_turn = threading.RLock()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's and NumPy's and puts them back afterwards. Threads take turns: a stream is whole."""
    with _turn, fork_rng([device] if device.type == "cuda" else []):
        before = numpys.get_state()
        torch.manual_seed(seed)
        numpys.seed(seed % 2**32)
        try:
            yield
        finally:
            numpys.set_state(before)


@contextmanager
def untouched() -> Iterator[None]:
    """Puts all generators back afterwards, unless another thread has its turn, which does so itself."""
    if not _turn.acquire(blocking=False):
        yield
        return
    before = numpys.get_state(), random.getstate()
    try:
        with fork_rng([]):
            yield
    finally:
        numpys.set_state(before[0])
        random.setstate(before[1])
        _turn.release()


def stands() -> tuple:
    """Where the generators stand: another value once something drew from one of them."""
    kind, words, *rest = numpys.get_state()
    return torch.get_rng_state().numpy().tobytes(), kind, words.tobytes(), *rest, random.getstate()
