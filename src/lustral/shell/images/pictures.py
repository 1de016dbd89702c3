"""Image files in and out: pictures, npy and npz; a file or a folder, written back in the format that was read."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core.errors import UserError
from ..files import replacing
from . import decode, walk
from .data import as_images, read_arrays

ARRAYS = (".npy", ".npz")
NAMED = f"{decode.NAMED} pictures, npy and npz files"
LOSSLESS = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_lzw"}}
"""How formats are written that have a choice: without loss where they can."""


@dataclass(frozen=True)
class Source:
    """Images of one file [b, c, h, w] in [0, 1], and what is needed to write them back as they came.

    ``transparent``: some of it was, and is white now.
    """

    x: Tensor
    path: Path
    original: Any
    transparent: bool = False


def files(place: Path) -> list[Path]:
    """The image files that a path means: itself, or those in the folder, in order; what is ``walk.aside`` is none."""
    if place.is_dir():
        return sorted(walk.below(place))
    if not place.exists():
        raise UserError(f"Cannot read {place}: there is no such file or folder; check the path.")
    return [place]


def _check(found: list[Path], place: Path) -> None:
    """Refuses files that are no images before the first one is cleaned, so that none is passed over."""
    others = [path for path in found if _kind(path) is None]
    if others:
        raise UserError(f"{walk.named(others)}: no image that Lustral reads; it takes {NAMED}.")
    if not found:
        raise UserError(f"{place} holds no images; it takes {NAMED}.")


def _kind(path: Path) -> str | None:
    """The format that a file's name stands for."""
    suffix = path.suffix.lower()
    return suffix if suffix in ARRAYS else decode.SUFFIXES.get(suffix)


def read(path: Path, channels: int) -> Source:
    """The images of one file, in the number of channels that the network wants."""
    if _kind(path) in ARRAYS:
        return _arrays(path, channels)
    pixels, transparent = decode.read(path, "RGB")
    if channels == 1:
        if not decode.grey(pixels):
            raise UserError(
                f"{path} is in colour, and this denoiser cleans grey pictures; choose another --purification.denoiser, "
                "for example cifar10-unet, or save the picture in grey."
            )
        pixels = pixels[:, :, 0]
    return Source(as_images(pixels[None], str(path)), path, None, transparent)


def _arrays(path: Path, channels: int) -> Source:
    """The images of an array file."""
    arrays = read_arrays(path)
    if "x" not in arrays:
        raise UserError(f"{path} must hold its images in an array named x, but holds {', '.join(arrays) or 'nothing'}.")
    array, transparent = arrays["x"], False
    axis = _colours(array)
    if axis is not None:
        if channels == 1:
            raise UserError(
                f"{path} of shape {array.shape} may be one image in colour or {len(array)} grey ones; save grey ones "
                "as [n, 1, h, w], or clean colour with another --purification.denoiser, for example cifar10-unet."
            )
        array = np.moveaxis(array, axis, 0)
        transparent = len(array) == 4 and bool((array[3] < (255 if array.dtype == np.uint8 else 1)).any())
        array = _on_white(array)[None]
    x = as_images(array, str(path))
    if x.shape[1] != channels:
        raise UserError(
            f"{path} has {x.shape[1]} channels, but this denoiser cleans images with {channels}; choose another "
            "--purification.denoiser."
        )
    return Source(x, path, arrays, transparent)


def _colours(array: np.ndarray) -> int | None:
    """The axis of the channels, where an array [3, h, w], [h, w, 3] or [h, w, 4] looks like one image in colour."""
    if array.ndim != 3:
        return None
    return 0 if array.shape[0] == 3 else 2 if array.shape[2] in (3, 4) else None


def _on_white(array: np.ndarray) -> np.ndarray:
    """An image [3, h, w], or [4, h, w] whose last channel says how opaque it is, in three channels."""
    if len(array) == 3 or array.dtype.kind not in "uf":
        return array[:3]
    whole = 255 if array.dtype == np.uint8 else 1
    mixed = whole - (whole - array[:3].astype(np.float64)) * (array[3] / whole)
    return (mixed.round() if whole == 255 else mixed).astype(array.dtype)


def like(paths: Iterable[Path]) -> str:
    """The data set whose networks take as many colours as the first file that can be read: digits where it is grey."""
    for path in paths:
        try:
            return "digits" if _grey(path) else "cifar10"
        except UserError:  # which is said when its turn comes
            continue
    return "digits"


def _grey(path: Path) -> bool:
    if _kind(path) in ARRAYS:
        x = read_arrays(path).get("x", np.empty(0))
        return x.ndim != 4 or 3 not in (x.shape[1], x.shape[3])
    return decode.grey(decode.read(path, "RGB")[0])


def groups(
    jobs: Iterable[tuple[Path, Path]], channels: int, batch: int, failed: list[str]
) -> Iterator[list[tuple[Source, Path]]]:
    """Reads (input, output) paths; successive files whose images are of one size come together, up to a batch.

    What is wrong with a file is added to those that ``failed``, and the others go on.
    """
    group: list[tuple[Source, Path]] = []
    for path, out in jobs:
        try:
            found = read(path, channels)
        except UserError as e:
            failed.append(str(e))
            continue
        count = sum(len(one.x) for one, _ in group) + len(found.x)
        if group and (found.x.shape[1:] != group[0][0].x.shape[1:] or count > batch):
            yield group
            group = []
        group.append((found, out))
    if group:
        yield group


def failure(failed: list[str], files: int) -> UserError:
    """What went wrong with some of so many files, in one sentence."""
    if files == 1:
        return UserError(failed[0])
    reasons = "; ".join(reason.rstrip(".") for reason in failed)
    return UserError(f"{len(failed)} of {files} files were not cleaned, the others are written: {reasons}.")


def write(source: Source, x: Tensor, path: Path) -> None:
    """Writes purified images in the format, layout and type of their source."""
    content = io.BytesIO()  # NumPy and Pillow do not notice all failures when they write to a file themselves
    _encode(source, x.clamp(0, 1), path.suffix.lower(), content)
    with replacing(path) as scratch:
        scratch.write_bytes(content.getbuffer())


def _encode(source: Source, x: Tensor, suffix: str, content: io.BytesIO) -> None:
    if suffix in ARRAYS:
        array = _like(x, source.original["x"])
        if suffix == ".npy":
            np.save(content, array)
        else:
            np.savez_compressed(content, **source.original | {"x": array})
        return
    array = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    kind = decode.SUFFIXES[suffix]
    (picture.convert("L") if suffix == ".pgm" else picture).save(content, kind, **LOSSLESS.get(kind, {}))


def _like(x: Tensor, original: np.ndarray) -> np.ndarray:
    """The images x with the layout and type of an array that they were read from."""
    if original.ndim == 3 and x.shape[1] == 3:  # one image in colour, opaque now if it has a say in that
        axis = _colours(original)
        more = x.new_ones(original.shape[axis] - 3, *x.shape[2:])
        x = torch.cat([x[0], more]).movedim(0, axis)
    elif original.ndim == 3:
        x = x[:, 0]
    elif original.shape[1] != x.shape[1] or original.shape[1:] != tuple(x.shape[1:]):
        x = x.permute(0, 2, 3, 1)
    if original.dtype == np.uint8:
        return (x * 255).round().to(torch.uint8).numpy()
    return x.numpy().astype(original.dtype)


def pairs(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """(input, output) paths: a file to a file or into a folder, a folder to a folder of the same shape.

    No output takes the place of its input, and outputs of an earlier call in a folder within are no inputs.
    """
    found = files(source)
    single = target / source.name if target.is_dir() and source.is_file() else target
    if single.resolve() == source.resolve():
        raise UserError(f"This would write over {source}; name another output.")
    if source.is_dir():
        if target.exists() and not target.is_dir():
            raise UserError(f"{source} is a folder, so {target} must be one too; it is a file.")
        within = source.resolve() in target.resolve().parents
        own = [path for path in found if not (within and target.resolve() in path.resolve().parents)]
        _check(own, source)
        yield from ((path, target / path.relative_to(source)) for path in own)
        return
    _check(found, source)
    if _kind(single) != _kind(source):
        raise UserError(
            f"Lustral writes the format that it reads: name the output {single.with_suffix(source.suffix).name}."
        )
    yield source, single
