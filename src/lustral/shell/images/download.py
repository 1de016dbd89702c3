"""Fetching standard image sets as they were published: resumed where it stopped, checked, whole or absent."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ...core.errors import UserError, unknown
from ..files import replacing, saying
from ..terminal import progress
from . import data
from .readers import IDX

CHUNK = 2**18
TIMEOUT = 30.0
ATTEMPTS = 10  # in a row without a new byte ends it at once


@dataclass(frozen=True)
class Origin:
    """Where a set's files are published, and their MD5 sums as published there."""

    url: str
    md5: dict[str, str]


def _idx_files(*md5: str) -> dict[str, str]:
    return dict(zip([f"{name}.gz" for name in IDX], md5, strict=True))


ORIGINS = {
    "cifar10": Origin(
        "https://www.cs.toronto.edu/~kriz", {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
    ),
    "cifar100": Origin(
        "https://www.cs.toronto.edu/~kriz", {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}
    ),
    "mnist": Origin(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        _idx_files(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": Origin(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        _idx_files(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
}


def fetch(name: str, folder: Path, source: str | None = None) -> bool:
    """Puts a set's published files into ``folder``: from where they are published, from a mirror or another folder.

    Returns whether anything had to be fetched.
    """
    if name not in ORIGINS:
        raise unknown("data set to fetch", name, ORIGINS)
    origin = ORIGINS[name]
    source = origin.url if source is None else source
    missing = [file for file, md5 in origin.md5.items() if _md5(folder / file) != md5]
    if not missing or _in_another_form(name, folder):
        return False
    for file in missing:
        if "://" not in source:
            _copy(Path(source).expanduser() / file, folder / file, origin.md5[file], name)
        elif source.startswith(("http://", "https://")):
            _download(f"{source.rstrip('/')}/{file}", folder / file, origin.md5[file])
        else:
            raise UserError(f"{source} is neither a folder nor an address with http:// or https://; name one of them.")
    return True


def _in_another_form(name: str, folder: Path) -> bool:
    """Whether the set is there, unpacked or in its other published form, and reads well."""
    if any((folder / file).exists() for file in ORIGINS[name].md5):
        return False
    try:
        places = None if folder == data.folder() / name else [folder]
        return data.standard(name, places) is not None
    except UserError:
        return False


def _md5(path: Path) -> str | None:
    """MD5, because that is what is published; None without the file."""
    if not path.is_file():
        return None
    with saying(path, "read"), open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _copy(source: Path, target: Path, md5: str, name: str) -> None:
    if not source.is_file():
        raise UserError(
            f"{source.parent} lacks {source.name}; a folder of unpacked files of {name} needs no fetching, "
            f"it can be used as --data {source.parent}."
        )
    if _md5(source) != md5:
        raise UserError(f"{source} does not have the published checksum; find another copy of it.")
    with replacing(target) as scratch:
        shutil.copyfile(source, scratch)


def _download(url: str, target: Path, md5: str) -> None:
    """Fetches into a .part file, which stays where the connection breaks, and gets its name after its checksum."""
    part = target.with_name(f"{target.name}.part")
    with saying(part, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            before = _size(part)
            if _continue(url, part):
                break
            if _size(part) <= before:
                raise _broken(url, part)
        else:
            raise _broken(url, part)
        if _md5(part) != md5:
            part.unlink()
            raise UserError(
                f"{target.name} from {url} does not have the published checksum and was removed; "
                "try again, or name another mirror with --from."
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


def _continue(url: str, part: Path) -> bool:
    """One connection that appends to the .part file what it lacks; whether the file is then complete."""
    have = _size(part)
    request = Request(url, headers={"User-Agent": "lustral", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        reply = urlopen(request, timeout=TIMEOUT)
    except HTTPError as e:
        e.close()
        if e.code == 416:  # nothing lies beyond what is there: it is complete, or the checksum will say otherwise
            return True
        raise UserError(f"{url} answered {e.code} {e.reason}; name another mirror or a folder with --from.") from e
    except (URLError, HTTPException, OSError, ValueError) as e:
        reason = str(getattr(e, "reason", None) or e or type(e).__name__)
        kept = f"; the first {have / 1e6:.1f} MB are kept" if have else ""
        raise UserError(
            f"Cannot reach {url} ({reason}{kept}); check the network, or name a folder or a mirror that has the file "
            "with --from."
        ) from e
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
            _pour(reply.read1, f.write, lambda n: bar.advance(task, n))
    return total is None or _size(part) >= total


def _start(headers: Message) -> int | None:
    """Where a part starts: Content-Range is 'bytes START-END/TOTAL'."""
    start = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None


def _pour(read: Callable[[int], bytes], write: Callable[[bytes], int], advance: Callable[[int], None]) -> None:
    """Moves bytes until there are no more or the connection breaks; what has come is kept."""
    while True:
        try:
            chunk = read(CHUNK)
        except (HTTPException, OSError):
            return
        if not chunk:
            return
        write(chunk)
        advance(len(chunk))
