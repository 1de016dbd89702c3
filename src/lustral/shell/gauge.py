"""Progress within a batch: its networks tell of every row that passes through them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..core.purifier import Purifier
from ..denoisers.base import Meter


def calls(purifier: Purifier) -> int:
    """How often a purifier asks its networks at most."""
    return getattr(purifier, "calls", purifier.n_steps)


@contextmanager
def gauged(meter: Meter | None, each: float, planned: float, advance: Callable[[float], None]) -> Iterator[None]:
    """Advances by ``each`` for a row that passes forward and twice that backward, and by ``planned`` once all is done.

    ``planned`` is what the block may cost; where its networks are asked more, the rest is not told.
    """
    told = 0.0

    def tell(rows: int) -> None:
        nonlocal told
        more = min(rows * each, planned - told)
        told += more
        if more > 0:
            advance(more)

    with (meter or Meter()).telling(tell):
        yield
    advance(planned - told)
