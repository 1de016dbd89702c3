"""The terminal and the process: progress, the command line that runs, the versions that it runs on."""

import platform
import shlex
import sys
import threading
import time
from dataclasses import dataclass, field

from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn, TimeRemainingColumn

import lustral

from .streams import Screen

console = Screen(stderr=True)


def note(text: str) -> None:
    """Says a sentence beside a command's results: on standard error, in one line."""
    console.print(text, highlight=False, soft_wrap=True)


def versions() -> dict[str, str]:
    """What a number depends on besides the run's spec."""
    import numpy as np
    import scipy
    import torch

    return {
        "lustral": lustral.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


@dataclass
class Log:
    """Progress for logs and pipes: a line with the share done and the time left, soon and then every ten seconds."""

    soon: float = 8.0
    every: float = 10.0
    total: float = 0.0
    completed: float = 0.0
    description: str = ""
    _started: float = field(default_factory=time.monotonic)
    _first: float = 0.0
    _next: float = 0.0
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, failure: type | None, *_) -> None:
        if failure is None:
            self._say()

    def add_task(self, description: str, total: float, completed: float = 0.0) -> int:
        self.description, self.total, self.completed, self._first = description, total, completed, completed
        self._next = time.monotonic() + self.soon
        return 0

    def update(self, task: int, *, completed: float | None = None, description: str | None = None) -> None:
        self.description = self.description if description is None else description
        self.advance(task, 0.0 if completed is None else completed - self.completed)

    def advance(self, task: int, amount: float = 1.0) -> None:
        with self._turn:
            self.completed += amount
            if time.monotonic() > self._next:
                self._say()

    def _say(self) -> None:
        now = time.monotonic()
        self._next = now + self.every
        spent, fresh = now - self._started, self.completed - self._first
        rest = max(0.0, self.total - self.completed)  # steps need not add up to the total to the bit
        left = "time left unknown" if fresh <= 0 < rest else f"{spent * rest / max(fresh, 1e-9):.0f} s left"
        console.print(
            f"{self.completed / max(self.total, 1):4.0%} {self.description}, {spent:.0f} s, {left}", highlight=False
        )


class Quiet:
    """A progress display that shows nothing: all but the first of several processes have it."""

    def __enter__(self) -> "Quiet":
        return self

    def __exit__(self, *_) -> None:
        pass

    def add_task(self, description: str, total: float, completed: float = 0.0) -> int:
        return 0

    def update(self, task: int, **_) -> None:
        pass


def progress() -> Progress | Log:
    """The one progress display, with an estimate of the time left: a bar in a terminal, lines elsewhere."""
    if not console.is_terminal:
        return Log()
    columns = (
        "{task.description}",
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, refresh_per_second=2)


def command() -> str:
    """The command line that runs now, as a person would type it."""
    return shlex.join(["lustral", *sys.argv[1:]])
