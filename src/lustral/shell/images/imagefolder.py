"""A folder of pictures: class folders, or train and test (or val) folders of class folders."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ..files import saying
from ..terminal import note
from . import decode, walk
from .splits import Labelled, Parts, by_hash

FOLDERS = {"train": ("train",), "test": ("test",), "validation": ("val", "valid", "validation")}


def read(root: Path) -> Parts:
    """The pictures below a folder. Ids are positions in the list of all relative paths, sorted as text.

    The pictures come in the order of their ids' SHA-256, so that the first so many are of all classes. Classes are
    the class folders, with or without pictures, in the order that people count in: 2 before 10.

    Where there is no test folder, val is what is tested on. Class folders alone are the whole set, whatever the split.
    All pictures must be of one size; they are read in grey where all of them are. A file that is neither a picture nor
    ``walk.aside`` is refused, so that none is missed.
    """
    with saying(root, "read"):
        places = {split: _first(root, names) for split, names in FOLDERS.items()}
        places = {split: place for split, place in places.items() if place is not None}
        if "test" not in places and "validation" in places:
            places["test"] = places.pop("validation")
        whole = not places
        folders = {split: _folders(place) for split, place in (places or {"train": root}).items()}
        here = (root.resolve(),)
        found = {split: [p for place in within for p in walk.below(place, here)] for split, within in folders.items()}
        loose = [path for place in places.values() or [root] for path in _pictures(place.iterdir())]
    everything = sorted((path.relative_to(root).as_posix(), path) for paths in found.values() for path in paths)
    if not any(_pictures(path for _, path in everything)):
        raise UserError(
            f"{root} holds no set that Lustral reads: CIFAR's or MNIST's published files, class folders of pictures "
            f"({decode.NAMED}), or train and test folders of class folders."
        )
    _refuse_others([path for _, path in everything], loose)
    ids = {path: i for i, (_, path) in enumerate(everything)}
    found = {split: sorted(paths, key=lambda path: by_hash(ids[path])) for split, paths in found.items()}
    mode, size = _common(list(ids))
    depth = 0 if whole else 1
    names = _classes(folders, {path.relative_to(root).parts[depth] for path in ids})
    classes = {name: i for i, name in enumerate(names)}
    own = {
        split: Labelled(
            torch.tensor([classes[path.relative_to(root).parts[depth]] for path in paths], dtype=torch.long),
            lambda paths=paths: _pixels(paths, mode, size),
            torch.tensor([ids[path] for path in paths]),
        )
        for split, paths in found.items()
        if paths
    }
    return Parts(own | ({"test": own["train"]} if whole else {}), classes=names)


def natural(name: str) -> list[tuple[int, int]]:
    """A key that sorts names as text, but for the numbers in them, which count: 2 before 10."""
    parts = re.findall(r"[0-9]+|[^0-9]", name)
    return [(ord("0"), int(part)) if part[0] in "0123456789" else (ord(part), 0) for part in parts]


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the folders that is there, in any case, and holds folders; a class may be called train as well."""
    there = {place.name.casefold(): place for place in sorted(root.iterdir()) if place.is_dir()}
    return next((there[name] for name in names if name in there and _folders(there[name])), None)


def _folders(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.is_dir() and not walk.aside(path)]


def _pictures(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in decode.SUFFIXES and not walk.aside(path)]


def _refuse_others(paths: list[Path], loose: list[Path]) -> None:
    """Says which files would be missed: those of no known format, and pictures in no class."""
    others = [path for path in paths if path.suffix.lower() not in decode.SUFFIXES]
    if others:
        raise UserError(
            f"{walk.named(others)} cannot be read among the pictures of a class; save them as {decode.NAMED} files, "
            "or take them out of there."
        )
    if loose:
        raise UserError(f"{walk.named(sorted(loose))}: pictures in no class folder; move them into one, or away.")


def _classes(folders: dict[str, list[Path]], filled: set[str]) -> tuple[str, ...]:
    """The names of all class folders; those without pictures are said.

    Tests may be of fewer classes than training, or of more (defects, for example), but not of other ones.
    """
    own = {split: {place.name for place in places} for split, places in folders.items()}
    for split, names in own.items():
        trained = own.get("train", names)
        if trained - names and names - trained:
            lost, new = (", ".join(sorted(some, key=natural)[:3]) for some in (trained - names, names - trained))
            raise UserError(f"Train has the classes {lost}, where {split} has {new}; name the class folders alike.")
    every = sorted(set().union(*own.values()), key=lambda name: (natural(name), name))
    if empty := [f"{name} ({i})" for i, name in enumerate(every) if name not in filled]:
        note(f"Class folders without pictures keep their numbers: {', '.join(empty)}.")
    return tuple(every)


def _common(paths: list[Path]) -> tuple[str, tuple[int, int]]:
    """Grey or colour, by a look at all headers, and the size, on which they must agree."""
    grey, size = True, None
    for path in paths:
        header = decode.look(path)
        _check_size(path, header.size, size)
        size = header.size
        if grey:
            grey = decode.grey(decode.read(path, "RGB").array) if header.grey is None else header.grey
    return "L" if grey else "RGB", size


def _check_size(path: Path, size: tuple[int, int], common: tuple[int, int] | None) -> None:
    if common not in (None, size):
        have, others = ("×".join(map(str, found)) for found in (size, common))
        raise UserError(f"{path} is {have} pixels but others are {others}; resize the pictures to one size.")


def _pixels(paths: list[Path], mode: str, size: tuple[int, int]) -> Tensor:
    """The pictures as bytes [n, c, h, w]."""
    arrays, transparent = [], 0
    for path in paths:
        array, through = decode.read(path, mode)
        _check_size(path, array.shape[1::-1], size)
        arrays.append(array)
        transparent += through
    decode.say_white(transparent, len(paths))
    x = torch.from_numpy(np.stack(arrays))
    return x[:, None] if mode == "L" else x.permute(0, 3, 1, 2).contiguous()
