"""Scratch files and folders: their names say which process made them, so that those of dead ones can be removed."""

import os
import re
import secrets
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

LIFE = secrets.token_hex(4)
"""Tells this process from an earlier one with the same number, as in a container that starts again."""


def new(suffix: str, folder: Path) -> Path:
    """A new empty file in a folder, hidden and ours. The first one in a folder removes what dead processes left."""
    sweep(folder)
    handle, name = tempfile.mkstemp(prefix=f".{_mark()}", suffix=suffix, dir=folder)
    os.close(handle)
    return Path(name)


@contextmanager
def unkept() -> Iterator[Path]:
    """A folder for the length of a block, among the system's temporary files."""
    sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_mark()) as made:
        yield Path(made)


@cache
def sweep(folder: Path) -> None:
    """Removes from a folder what processes of this machine that are gone have left there; once in a process."""
    with suppress(OSError):
        for left in folder.iterdir():
            if _is_left(left.name):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _mark() -> str:
    return f"lustral-{_machine()}-{os.getpid()}-{LIFE}-"


def _is_left(name: str) -> bool:
    found = re.match(r"\.?lustral-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-", name)
    if found is None or found[1] != _machine():
        return False
    pid = int(found[2])
    return found[3] != LIFE if pid == os.getpid() else not _runs(pid)


@cache
def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _runs(pid: int) -> bool:
    """Whether there is such a process, for all that can be known: to ask Windows would end it."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
