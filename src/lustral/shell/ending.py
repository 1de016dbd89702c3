"""Requests to end (Ctrl-C, SIGTERM) that wait until what is being done can be kept."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = signal.SIGINT, signal.SIGTERM
AGAIN = 1.0
"""Seconds within which several requests are one: impatient fingers, and programs that send both signals."""


class Ending:
    """Whether the process was asked to end."""

    asked = False
    since = 0.0


@contextmanager
def awaited() -> Iterator[Ending]:
    """Inside the block a first request to end is only noted, for whoever looks; one more, after a second, ends at once.

    Outside the main thread, which alone meets signals, nothing is asked.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if ending.asked and now - ending.since > AGAIN:
            raise KeyboardInterrupt("the last checkpoint is kept, if there was one")
        ending.asked, ending.since = True, ending.since if ending.asked else now

    before = {number: signal.signal(number, note) for number in ASKING}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
