"""How a command ends that did not do what it was asked for: what it says, and its exit code."""

import errno
from argparse import ArgumentError
from collections.abc import Sequence

from ..core.errors import UserError
from . import streams
from .parser import plainly

UNHEARD, MISTAKEN, INTERRUPTED = 1, 2, 130
RESUMING = {"demo", "data", "train", "evaluate", "tune"}
UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG}
"""What writing to standard output may fail with; errors of files have the files' names."""
EXPLAINED = UserError, UnicodeDecodeError, ArgumentError, OSError, RuntimeError, MemoryError, KeyboardInterrupt


def explained(error: BaseException, args: Sequence[str]) -> tuple[str, int] | None:
    """One sentence and the exit code for a failure of a command with these arguments; None for faults of ours."""
    if isinstance(error, UnicodeDecodeError):
        return f"A file that should be text is not in UTF-8 ({error.reason}); save it as UTF-8.", MISTAKEN
    if isinstance(error, UserError):
        return str(error), MISTAKEN
    if isinstance(error, ArgumentError):
        return plainly(str(error), args), MISTAKEN
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, KeyboardInterrupt):
        kept = f"{str(error) or 'what its folder holds is kept'}, and the same command goes on from there."
        said = kept if RESUMING & set(args[:1]) else "the same command starts from the beginning."
        return f"interrupted; {said}", INTERRUPTED
    from ..core import memory

    if not memory.lacking(error):
        return None
    reason = next(iter(str(error).splitlines()), "none is left")
    return f"There is not enough memory ({reason}); choose a smaller batch.", MISTAKEN


def _of_the_system(error: OSError) -> tuple[str, int]:
    reason = (error.strerror or str(error)).lower()
    if error.filename is None and error.errno in UNWRITABLE:
        streams.give_up()
        return f"Cannot write what this command says ({reason}); what it wrote to files is there.", UNHEARD
    where = "" if error.filename is None else f"{error.filename}: "
    return f"{where}{reason}; free some space, or choose another place.", MISTAKEN
