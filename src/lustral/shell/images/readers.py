"""The published formats of standard image sets: CIFAR's binary and Python files and MNIST's idx files, or archives.

A set is read whole, in its official order, as bytes; which images are for what is said in ``splits.py``.
"""

import gzip
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ...core.errors import UserError
from ..files import reading, saying
from . import unpickle
from .classes import CLASSES
from .splits import Labelled, Parts

SIDE = 32
PIXELS = 3 * SIDE * SIDE
BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
IDX = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
ARCHIVES = (".tar.gz", ".tgz", ".tar")
# No published member is larger than CIFAR-100's training file of 148 MiB; what claims more is no such file.
LARGEST = 256 * 2**20

Files = Mapping[str, bytes]
# Per set: the files of each published form, and its reader; then the folders and archives that those forms come in.
FORMS: dict[str, list[tuple[tuple[str, ...], Callable[[Files, str], Parts]]]] = {
    "cifar10": [
        ((*BATCHES, "test_batch"), lambda files, name: _cifar_python(files, BATCHES, "test_batch", "labels", 10, name)),
        (
            (*(f"{b}.bin" for b in BATCHES), "test_batch.bin"),
            lambda files, name: _cifar_binary(files, [f"{b}.bin" for b in BATCHES], "test_batch.bin", 1, 10, name),
        ),
    ],
    "cifar100": [
        (("train", "test"), lambda files, name: _cifar_python(files, ("train",), "test", "fine_labels", 100, name)),
        (("train.bin", "test.bin"), lambda files, name: _cifar_binary(files, ["train.bin"], "test.bin", 2, 100, name)),
    ],
    "mnist": [(IDX, lambda files, name: _idx_set(files, name))],
    "fashion-mnist": [(IDX, lambda files, name: _idx_set(files, name))],
}
# What `lustral data` fetched and checked comes first.
HOMES = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz", "cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz", "cifar-100-python", "cifar-100-binary"),
    "mnist": ("MNIST/raw",),
    "fashion-mnist": ("FashionMNIST/raw",),
}


def published(place: Path, names: tuple[str, ...] = tuple(FORMS)) -> Parts | None:
    """The set that a folder or an archive holds in a published form, itself or one level below; None without one."""
    below = {name: [place / home for home in HOMES[name] if (place / home).exists()] for name in names}
    several = [name for name, homes in below.items() if homes]
    if len(several) > 1:
        raise UserError(
            f"{place} holds several sets ({', '.join(several)}); name the folder or archive of one of them."
        )
    lacking = None
    for home in (place, *(home for homes in below.values() for home in homes)):
        present = _archived(home) if home.is_file() else _present(home)
        for name in names:
            for wanted, read in FORMS[name]:
                have = [file for file in wanted if file in present]
                if len(have) == len(wanted):
                    found = read({file: present[file]() for file in wanted}, str(home))
                    told = wanted != IDX or len(names) == 1  # MNIST's files and Fashion-MNIST's are called alike
                    return replace(found, classes=CLASSES.get(name, ()) if told else ())
                if 2 * len(have) > len(wanted) and lacking is None:
                    file = next(file for file in wanted if file not in present)
                    lacking = UserError(f"{home} lacks {file}; fetch the set again with `lustral data {name}`.")
    if lacking is not None:
        raise lacking
    return None


def _present(folder: Path) -> dict[str, Callable[[], bytes]]:
    """How to read each file of a folder, by its name without .gz and with MNIST's other spelling undone."""
    if not folder.is_dir():
        return {}
    with saying(folder, "read"):
        files = sorted(p for p in folder.iterdir() if p.is_file())
    return {p.name.removesuffix(".gz").replace(".idx", "-idx"): lambda p=p: _content(p) for p in files}


def _content(path: Path) -> bytes:
    with reading(path):
        return _unzipped(path) if path.suffix == ".gz" else path.read_bytes()


def _unzipped(path: Path) -> bytes:
    try:
        with gzip.open(path) as f:
            content = f.read(LARGEST + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(f"{path} is damaged; fetch it again.") from e
    if len(content) > LARGEST:
        raise UserError(
            f"{path} unpacks to more than {LARGEST >> 20} MiB, which no published file does; fetch it again."
        )
    return content


def _archived(path: Path) -> dict[str, Callable[[], bytes]]:
    """The members of an archive that bear a known name. Nothing is extracted, so where a member wants to go is moot."""
    if not path.name.endswith(ARCHIVES):
        return {}
    wanted = {file for forms in FORMS.values() for files, _ in forms for file in files}
    found: dict[str, bytes] = {}
    with reading(path):
        try:
            with tarfile.open(path, "r|*") as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.isreg() and name in wanted and name not in found:
                        if member.size > LARGEST:
                            raise UserError(f"{path} holds a {name} of {member.size >> 20} MiB; fetch it again.")
                        found[name] = archive.extractfile(member).read()
        except (tarfile.TarError, EOFError, zlib.error) as e:
            raise UserError(f"{path} is damaged or no tar archive; fetch it again.") from e
        except OSError as e:
            if e.errno is not None:
                raise
            raise UserError(f"{path} is damaged or no tar archive; fetch it again.") from e
    return {name: lambda content=content: content for name, content in found.items()}


def _cifar_python(files: Files, train: tuple[str, ...], test: str, key: str, classes: int, name: str) -> Parts:
    parts = {}
    for split, batches in (("train", train), ("test", (test,))):
        images, labels = [], []
        for batch in batches:
            found = unpickle.read(files[batch], f"{name}/{batch}")
            data, given = found.get("data"), found.get(key)
            if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != PIXELS:
                raise UserError(f"{name}/{batch} holds no images of 3×{SIDE}×{SIDE} as data; fetch it again.")
            if not isinstance(given, list) or not all(type(label) is int for label in given):
                raise UserError(f"{name}/{batch} holds no list of whole numbers as {key}; fetch it again.")
            images.append(data)
            labels += given
        parts[split] = _checked(np.concatenate(images), labels, (3, SIDE, SIDE), classes, name)
    return Parts.in_order(parts)


def _cifar_binary(files: Files, train: list[str], test: str, labels: int, classes: int, name: str) -> Parts:
    """Records of ``labels`` label bytes, the last of which counts, and 3072 pixel bytes."""
    parts = {}
    for split, batches in (("train", train), ("test", [test])):
        for batch in batches:
            if len(files[batch]) % (labels + PIXELS):
                raise UserError(f"{name}/{batch} is cut off in the middle of an image; fetch it again.")
        content = np.frombuffer(b"".join(files[batch] for batch in batches), np.uint8)
        records = content.reshape(-1, labels + PIXELS)
        parts[split] = _checked(records[:, labels:], records[:, labels - 1], (3, SIDE, SIDE), classes, name)
    return Parts.in_order(parts)


def _idx_set(files: Files, name: str) -> Parts:
    parts = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = _idx(files[f"{stem}-images-idx3-ubyte"], 3, f"{name}/{stem}-images-idx3-ubyte")
        labels = _idx(files[f"{stem}-labels-idx1-ubyte"], 1, f"{name}/{stem}-labels-idx1-ubyte")
        parts[split] = _checked(images, labels, (1, *images.shape[1:]), 256, name)
    return Parts.in_order(parts)


def _idx(content: bytes, axes: int, name: str) -> np.ndarray:
    """An array of bytes: two zeros, the type 8, the number of axes, the axes as big-endian 32-bit, the content."""
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < 4 + 4 * axes:
        raise UserError(
            f"{name} is no idx file of bytes with {axes} {'axis' if axes == 1 else 'axes'}; fetch it again."
        )
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    if int(np.prod(shape, dtype=object)) != len(content) - 4 - 4 * axes:
        raise UserError(f"{name} does not have the size that it claims; fetch it again.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _checked(
    images: np.ndarray, labels: np.ndarray | list, shape: tuple[int, ...], classes: int, name: str
) -> Labelled:
    if len(images) != len(labels) or not len(images):
        raise UserError(f"{name} holds {len(labels)} labels for {len(images)} images; fetch it again.")
    if min(labels) < 0 or max(labels) >= classes:
        raise UserError(
            f"{name} holds labels {min(labels)} to {max(labels)} instead of 0 to {classes - 1}; fetch it again."
        )
    x = torch.from_numpy(np.array(images, order="C")).reshape(-1, *shape)  # a copy: what was read cannot be written to
    y = torch.from_numpy(np.array(labels, dtype=np.int64))
    return Labelled(y, lambda: x)
