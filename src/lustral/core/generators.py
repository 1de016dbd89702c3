"""The generators of torch and NumPy that a process has only one of, from which other libraries draw."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy.random as numpys
import torch
from torch.random import fork_rng

_turn = threading.RLock()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the generators and puts them back afterwards. Threads take turns: a stream is whole."""
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
    """Puts torch's generator back afterwards, unless another thread has its turn, which does so itself."""
    if not _turn.acquire(blocking=False):
        yield
        return
    try:
        with fork_rng([]):
            yield
    finally:
        _turn.release()
