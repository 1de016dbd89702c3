"""A folder of pictures: class folders, or train and test (or val) folders of class folders."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ...core.errors import UserError
from ..files import saying
from .splits import Labelled, Parts, by_hash

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FOLDERS = {"train": ("train",), "test": ("test",), "validation": ("val", "valid", "validation")}
GREY = ("1", "L", "LA")


def read(root: Path) -> Parts:
    """The pictures below a folder. Ids are positions in the sorted list of all relative paths; classes are sorted too.

    The pictures come in the order of their ids' SHA-256, so that the first so many are of all classes.

    Where there is no test folder, val is what is tested on. Class folders alone are the whole set, whatever the split.
    All pictures must be of one size; they are read in grey where all of them are.
    """
    with saying(root, "read"):
        places = {split: _first(root, names) for split, names in FOLDERS.items()}
        places = {split: place for split, place in places.items() if place is not None}
        if "test" not in places and "validation" in places:
            places["test"] = places.pop("validation")
        whole = not places
        found = {split: _pictures(place) for split, place in (places or {"train": root}).items()}
    everything = sorted((path.relative_to(root).as_posix(), path) for paths in found.values() for path in paths)
    if not everything:
        raise UserError(
            f"{root} holds no set that Lustral reads: CIFAR's or MNIST's published files, class folders of pictures, "
            "or train and test folders of class folders."
        )
    ids = {path: i for i, (_, path) in enumerate(everything)}
    found = {split: sorted(paths, key=lambda path: by_hash(ids[path])) for split, paths in found.items()}
    mode = _mode(list(ids))
    depth = 0 if whole else 1
    names = sorted({path.relative_to(root).parts[depth] for path in ids})
    classes = {name: i for i, name in enumerate(names)}
    own = {
        split: Labelled(
            torch.tensor([classes[path.relative_to(root).parts[depth]] for path in paths], dtype=torch.long),
            lambda paths=paths: torch.from_numpy(np.stack([_pixels(path, mode) for path in paths])),
            torch.tensor([ids[path] for path in paths]),
        )
        for split, paths in found.items()
        if paths
    }
    return Parts(own | ({"test": own["train"]} if whole else {}), classes=tuple(names))


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the folders that is there and holds folders; a class may be called train as well."""
    there = (root / name for name in names if (root / name).is_dir())
    return next((place for place in there if any(p.is_dir() for p in place.iterdir())), None)


def _pictures(root: Path) -> list[Path]:
    """The pictures inside class folders, in the order of their paths; hidden files are left out."""
    inside = ((p.relative_to(root), p) for p in root.glob("*/**/*") if p.suffix.lower() in PICTURES)
    shown = [(place.as_posix(), p) for place, p in inside if not any(part.startswith(".") for part in place.parts)]
    return [p for _, p in sorted(shown)]


def _mode(paths: list[Path]) -> str:
    """Grey or colour, by a look at all headers, which must agree on the size."""
    grey, size = True, None
    for path in paths:
        with _opened(path) as picture:
            if picture.mode[0] in "IF":  # which Pillow would cut off at 255 instead of scaling
                raise UserError(f"{path} has more than 8 bits a channel; save it with 8.")
            if size not in (None, picture.size):
                have, others = "×".join(map(str, picture.size)), "×".join(map(str, size))
                raise UserError(f"{path} is {have} pixels but others are {others}; resize the pictures to one size.")
            size, grey = picture.size, grey and picture.mode in GREY
    return "L" if grey else "RGB"


def _opened(path: Path) -> Image.Image:
    with saying(path, "read"):
        try:
            return Image.open(path)
        except (UnidentifiedImageError, SyntaxError) as e:
            raise UserError(f"{path} is damaged or no picture; check the file.") from e


def _pixels(path: Path, mode: str) -> np.ndarray:
    """One picture as bytes [c, h, w]."""
    with _opened(path) as picture:
        try:
            pixels = np.asarray(picture.convert(mode))
        except (OSError, SyntaxError, ValueError) as e:
            raise UserError(f"{path} is damaged ({e}); check the file.") from e
    return pixels[None] if mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))
