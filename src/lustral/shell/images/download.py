"""Fetching standard image sets as they were published: resumed where it stopped, checked, whole or absent."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import UserError, unknown
from .. import transport
from ..files import checksum, replacing
from . import data
from .readers import IDX, LARGEST

ELSEWHERE = "name another mirror or a folder that has the file with --from"


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
        md5 = origin.md5[file]
        if "://" not in source:
            _copy(Path(source).expanduser() / file, folder / file, md5, name)
        elif source.startswith(("http://", "https://")):
            transport.download(f"{source.rstrip('/')}/{file}", folder / file, md5, "md5", ELSEWHERE, LARGEST)
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
    return checksum(path, "md5") if path.is_file() else None


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
