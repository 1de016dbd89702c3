"""Requests to end (Ctrl-C, SIGTERM) that wait until what is being done can be kept."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = signal.SIGINT, signal.SIGTERM


class Ending:
    """Whether the process was asked to end."""

    asked = False


@contextmanager
def awaited() -> Iterator[Ending]:
    """Inside the block a first request to end is only noted, for whoever looks; a second one ends at once.

    Outside the main thread, which alone meets signals, nothing is asked.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return

    def note(number: int, frame: FrameType | None) -> None:
        if ending.asked:
            signal.default_int_handler(number, frame)
        ending.asked = True

    before = {number: signal.signal(number, note) for number in ASKING}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
