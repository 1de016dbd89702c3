"""Where lines leave the program: no stream fails for a character, and nothing that others wrote steers a terminal."""

import codecs
import os
import sys
import traceback
from contextlib import suppress
from types import TracebackType
from unicodedata import category

from rich.console import Console
from rich.text import Text

CLOSEST = {"→": "->", "×": "x", "±": "+-", "−": "-", "–": "-", "—": "-", "…": "...", "≥": ">=", "≤": "<=", "≈": "~"}
"""What is said in place of characters that an encoding lacks; of the others it is a question mark."""
REPLACED = "lustral-closest"


def plain(text: str) -> str:
    """One line of text in which what does not print (escape sequences, bells, turned directions) is spelt out."""
    return "".join(c if c.isprintable() or category(c) == "Zs" else _spelt(c) for c in text)


def _spelt(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")


class Screen(Console):
    """A console on which every text is plain, whoever wrote it; only its own styles and bars steer the terminal."""

    def __init__(self, **options):
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options) -> Text:
        return super().render_str(plain(text), **options)

    def on_broken_pipe(self) -> None:
        """Leaves what to do where nobody reads to whoever runs the command."""
        raise


def prepare() -> None:
    """Makes standard output and error take any text, and says errors that nobody caught in plain lines.

    Where a stream is closed its descriptor is taken, or the next file would get it and what libraries say with it.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    codecs.register_error(REPLACED, _closest)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=REPLACED)
    sys.excepthook = _uncaught


def finish() -> None:
    """Writes out what is still held; an OSError where that cannot be."""
    if sys.stdout is not None:
        sys.stdout.flush()


def give_up() -> None:
    """Turns standard output away from where nothing can be written, so that the end of the process does not try."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: object) -> None:
    """One line on standard error, if that can be written to."""
    with suppress(OSError):
        print(plain(str(text)), file=sys.stderr, flush=True)


def _closest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(CLOSEST.get(c, "?") for c in lost), error.end


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    for part in traceback.format_exception(kind, error, trace):
        for row in part.rstrip("\n").split("\n"):
            say(row)
