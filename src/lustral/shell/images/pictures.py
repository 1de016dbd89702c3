"""Image files in and out: PNG, JPEG, npy and npz; a file or a folder, written back in the format that was read."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...core.errors import UserError
from ..files import replacing, saying
from .data import as_images, read_arrays

PICTURES = (".png", ".jpg", ".jpeg")
ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Source:
    """Images of one file [b, c, h, w] in [0, 1], and what is needed to write them back as they came."""

    x: Tensor
    path: Path
    original: Any


def files(place: Path) -> list[Path]:
    """The image files that a path means: itself, or those in the folder, in order."""
    if place.is_dir():
        found = sorted(p for p in place.rglob("*") if p.suffix.lower() in PICTURES + ARRAYS)
        if not found:
            raise UserError(f"{place} holds no images; PNG, JPEG, npy and npz files are read.")
        return found
    if not place.exists():
        raise UserError(f"Cannot read {place}: there is no such file or folder; check the path.")
    if place.suffix.lower() not in PICTURES + ARRAYS:
        raise UserError(f"{place} is no image file that Lustral reads: PNG, JPEG, npy or npz.")
    return [place]


def read(path: Path, channels: int) -> Source:
    """The images of one file; pictures are taken in the number of channels that the network wants."""
    if path.suffix.lower() in ARRAYS:
        arrays = read_arrays(path)
        if "x" not in arrays:
            raise UserError(
                f"{path} must hold its images in an array named x, but holds {', '.join(arrays) or 'nothing'}."
            )
        return Source(as_images(arrays["x"], str(path)), path, arrays)
    with saying(path, "read"):
        try:
            with Image.open(path) as picture:
                if picture.mode[0] in "IF":  # which Pillow would cut off at 255 instead of scaling
                    raise UserError(f"{path} has more than 8 bits a channel; save it with 8, or as an array of floats.")
                upright = ImageOps.exif_transpose(picture)  # what is written has no tag that turns it
                pixels = np.asarray(upright.convert("RGB"))
        except (UnidentifiedImageError, SyntaxError) as e:
            raise UserError(f"{path} is damaged or no picture; check the file.") from e
        except OSError as e:
            if e.errno is not None:
                raise
            raise UserError(f"{path} is damaged ({e}); check the file.") from e
    if channels == 1:
        if (pixels != pixels[:, :, :1]).any():
            raise UserError(
                f"{path} is in colour, and this denoiser cleans grey pictures; choose another --purification.denoiser, "
                "for example cifar10-unet, or save the picture in grey."
            )
        pixels = pixels[:, :, 0]
    return Source(as_images(pixels[None], str(path)), path, None)


def groups(jobs: Iterable[tuple[Path, Path]], channels: int, batch: int) -> Iterator[list[tuple[Source, Path]]]:
    """Reads (input, output) paths; successive files whose images are of one size come together, up to a batch."""
    group: list[tuple[Source, Path]] = []
    for path, out in jobs:
        try:
            found = read(path, channels)
        except UserError:
            if group:  # what could be read is not lost
                yield group
            raise
        count = sum(len(one.x) for one, _ in group) + len(found.x)
        if group and (found.x.shape[1:] != group[0][0].x.shape[1:] or count > batch):
            yield group
            group = []
        group.append((found, out))
    if group:
        yield group


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
    kind, options = ("PNG", {}) if suffix == ".png" else ("JPEG", {"quality": 95})
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(content, kind, **options)


def _like(x: Tensor, original: np.ndarray) -> np.ndarray:
    """The images x with the layout and type of an array that they were read from."""
    if original.ndim == 3:
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
        yield from ((path, target / path.relative_to(source)) for path in own)
        return
    if single.suffix.lower() != source.suffix.lower():
        raise UserError(
            f"Lustral writes the format that it reads: name the output {single.with_suffix(source.suffix).name}."
        )
    yield source, single
