"""Files from the network: resumed where a connection broke, checked, whole or absent."""

import os
from collections.abc import Callable
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ..core.errors import UserError
from .files import checksum, saying
from .terminal import progress

CHUNK = 2**18
TIMEOUT = 30.0
ATTEMPTS = 10  # in a row without a new byte ends it at once


def download(url: str, target: Path, expected: str, algorithm: str, elsewhere: str, most: int) -> None:
    """Fetches into a .part file, which stays where the connection breaks, and gets its name after its checksum.

    An address that sends more than ``most`` bytes is left, and what it sent removed.

    ``elsewhere`` is what a person can do where this address does not help.
    """
    part = target.with_name(f"{target.name}.part")
    with saying(part, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            before = _size(part)
            if _continue(url, part, elsewhere, most):
                break
            if _size(part) <= before:
                raise _broken(url, part)
        else:
            raise _broken(url, part)
        if checksum(part, algorithm) != expected:
            part.unlink()
            raise UserError(
                f"{target.name} from {url} does not have the published checksum and was removed; "
                f"try again, or {elsewhere}."
            )
        with open(part, "rb") as f:
            os.fsync(f.fileno())
        part.replace(target)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _broken(url: str, part: Path) -> UserError:
    return UserError(
        f"The connection to {url} broke after {_size(part) / 1e6:.1f} MB; run the same command again, "
        "which goes on from there."
    )


def _continue(url: str, part: Path, elsewhere: str, most: int) -> bool:
    """One connection that appends to the .part file what it lacks; whether the file is then complete."""
    have = _size(part)
    request = Request(url, headers={"User-Agent": "lustral", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        reply = urlopen(request, timeout=TIMEOUT)
    except HTTPError as e:
        e.close()
        if e.code == 416:  # nothing lies beyond what is there: it is complete, or the checksum will say otherwise
            return True
        raise UserError(f"{url} answered {e.code} {e.reason}; {elsewhere}.") from e
    except (URLError, HTTPException, OSError, ValueError) as e:
        reason = str(getattr(e, "reason", None) or e or type(e).__name__)
        kept = f"; the first {have / 1e6:.1f} MB are kept" if have else ""
        raise UserError(f"Cannot reach {url} ({reason}{kept}); check the network, or {elsewhere}.") from e
    with reply:
        goes_on = reply.status == 206 and _start(reply.headers) == have
        if reply.status == 206 and not goes_on:  # another part than was asked for
            part.unlink(missing_ok=True)
            return False
        first = have if goes_on else 0
        length = reply.headers.get("Content-Length")
        total = first + int(length) if (length or "").isdigit() else None
        with open(part, "ab" if goes_on else "wb") as f, progress() as bar:
            task = bar.add_task(f"fetching {part.stem}", total=total or 0, completed=first)
            fits = (total or 0) <= most and _pour(reply.read1, f.write, most - first, lambda n: bar.advance(task, n))
    if not fits:
        part.unlink()
        raise UserError(f"{url} sends more than {most / 1e6:,.0f} MB, which is not what was asked for; {elsewhere}.")
    return total is None or _size(part) >= total


def _start(headers: Message) -> int | None:
    """Where a part starts: Content-Range is 'bytes START-END/TOTAL'."""
    start = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None


def _pour(
    read: Callable[[int], bytes], write: Callable[[bytes], int], most: int, advance: Callable[[int], None]
) -> bool:
    """Moves bytes until there are no more or the connection breaks; what has come is kept. False: beyond ``most``."""
    while most >= 0:
        try:
            chunk = read(CHUNK)
        except (HTTPException, OSError):
            return True
        if not chunk:
            return True
        write(chunk)
        advance(len(chunk))
        most -= len(chunk)
    return False
