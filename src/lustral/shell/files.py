"""Files that are whole or absent, and one sentence for what goes wrong."""

import errno
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from . import scratch

LARGEST_JSON = 2**28


def cache(kind: str) -> Path:
    """Where data or weights are kept: the environment's LUSTRAL_DATA or LUSTRAL_WEIGHTS, or the user's cache."""
    chosen = os.environ.get(f"LUSTRAL_{kind.upper()}")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        place = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        place = Path.home() / "Library" / "Caches"
    else:
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return place / "lustral" / kind


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch path beside ``path`` that takes its place when the block ends well, and vanishes otherwise."""
    with saying(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        made = scratch.new(path.suffix, path.parent)
        try:
            yield made
            with open(made, "rb") as f:
                os.fsync(f.fileno())
            made.chmod(0o644)
            made.replace(path)
        finally:
            made.unlink(missing_ok=True)


def check_suffix(path: Path, suffix: str, what: str) -> None:
    """Says how an output should be named, where its format is not that of its name."""
    if path.suffix != suffix:
        better = path.with_suffix(suffix) if path.name else path / f"out{suffix}"
        raise UserError(f"{what}; name the output so, for example {better}.")


def check_writable(path: Path) -> None:
    """Says before long work, not after it, that its result could not be written."""
    with saying(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically; bytes of names that are no text are spelt out, as JSON and people read them."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


def parsed(path: Path) -> Any:
    """The content of a JSON file; ValueError says what is wrong with it: no text, no JSON, nested without end."""
    with reading(path):
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"more than {LARGEST_JSON >> 20} MiB")
        content = path.read_text(encoding="utf-8")
    try:
        return json.loads(content, parse_constant=_refuse)
    except RecursionError as e:
        raise ValueError("nested too deep") from e


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def checksum(path: Path, algorithm: str) -> str:
    """The hexadecimal digest of a file's content (for checking, not for secrets)."""
    with reading(path), open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """``saying`` for a file that is read; what is none (a pipe, a device) may have no end, and is refused unread."""
    with saying(path, "read"):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is a pipe, a socket or a device; copy what it gives into a file, and name that.")
        yield


@contextmanager
def saying(path: Path, verb: str) -> Iterator[None]:
    """Turns the operating system's errors about ``path`` into one sentence."""
    try:
        yield
    except FileNotFoundError as e:
        raise UserError(f"Cannot {verb} {path}: there is no such file or folder; check the path.") from e
    except PermissionError as e:
        raise UserError(f"Cannot {verb} {path}: permission denied; choose another place or change its rights.") from e
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as e:
        raise UserError(
            f"Cannot {verb} {path}: a folder and a file are mixed up on the way there; check the path."
        ) from e
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise UserError(f"Cannot {verb} {path}: it is a link that leads to itself; name a file or folder.") from e
        reason = (e.strerror or str(e)).lower()
        raise UserError(f"Cannot {verb} {path}: {reason}; free some space or choose another place.") from e
