"""Labelled images with stable ids and fixed splits: a standard set, a folder, an .npz file, a set of Hugging Face's."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core import check
from ...core.errors import UserError, unknown
from ...evaluate.protocol import Data
from ...training.batches import as_floats
from ..files import cache, reading
from . import imagefolder, names, readers
from .classes import DIGITS
from .splits import SPLITS, Labelled, Parts

DIGITS_TRAIN, DIGITS_VALIDATION = 1200, 200
MEMBERS, UNPACKED, EXPANSION = 1_000, 2**30, 100
"""Arrays of an archive, and bytes that they may unpack to: so many in any case, or so many times the archive."""


def load(name: str, split: str = "test") -> Data:
    """A split of a data set, its images as floats in [0, 1].

    ``name`` is one of ``NAMES`` (found in ``folder()``, where ``lustral data`` puts it), the path of a folder or an
    archive in a published format, of a folder of class folders, or of an .npz file with x and y or x_train, y_train,
    x_test and y_test (and, if wanted, classes, the names of the labels), or ``hf:`` and a name on Hugging Face. What
    the splits are is said in ``splits.py``; a set without splits is all of it for train as for test.
    """
    found = load_bytes(name, split)
    return found._replace(x=as_floats(found.x))


def load_bytes(name: str, split: str = "test") -> Data:
    """The same, with images as they are stored: uint8 where a set has 8 bits, else floats in [0, 1] (digits, some npz).

    That is a quarter of the memory; ``training.batches.as_floats`` turns a batch into what networks take.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    source = parts(name)
    return source.pick(split, name)._replace(classes=tuple(source.classes))


def folder() -> Path:
    """Where standard sets are kept: the environment's LUSTRAL_DATA, or the user's cache."""
    return cache("data")


def standard(name: str, places: list[Path] | None = None) -> Parts | None:
    """A set of ``readers.FORMS`` from the first of these places that holds it; by default, from the data folder."""
    root = folder()
    # MNIST's files and Fashion-MNIST's have the same names, so only a folder of its own says which it is.
    spellings = (name, name.replace("-", "_"), *readers.HOMES[name])
    for place in places or [root / spelling for spelling in spellings]:
        found = readers.published(place, (name,)) if place.exists() else None
        if found is not None:
            return found
    return None


def parts(name: str) -> Parts:
    """The set by its own splits; images are read when a split is picked."""
    if name == "digits":
        return _digits()
    if name in readers.FORMS:
        found = standard(name)
        if found is None:
            raise UserError(
                f"{name} is not in {folder()}; fetch it with `lustral data {name}`, or name a folder that holds it."
            )
        return found
    if name.startswith(names.HUGGINGFACE):
        from . import huggingface

        return huggingface.read(name.removeprefix(names.HUGGINGFACE))
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return _npz(path)
    if path.exists():
        found = readers.published(path)
        if found is None and path.is_dir():
            return imagefolder.read(path)
        if found is not None:
            return found
    elif len(path.parts) > 1:
        raise UserError(f"Cannot read {path}: there is no such file or folder; check the path.")
    raise names.unknown(name)


def _digits() -> Parts:
    """The 1797 handwritten digits of scikit-learn, 8×8 with 17 grey levels.

    The first 1200 are for training (the last 200 of them for validation), the last 597 for testing. The file is in the
    order of the writers, so a contiguous split keeps most test writers out of training, which a shuffled one would not.
    Ids are positions in the file.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    ids, y = torch.arange(len(raw.target)), torch.tensor(raw.target, dtype=torch.long)
    x = torch.tensor(raw.images / 16, dtype=torch.float32)[:, None]
    halves = {"train": slice(DIGITS_TRAIN), "test": slice(DIGITS_TRAIN, None)}
    own = {split: Labelled(y[rows], lambda rows=rows: x[rows], ids[rows]) for split, rows in halves.items()}
    return Parts(own, DIGITS_VALIDATION, DIGITS)


def _npz(path: Path) -> Parts:
    arrays = read_arrays(path)
    if "x" in arrays and "y" in arrays:
        x, y = _labelled(arrays["x"], arrays["y"], "y", str(path))
        ids = arrays.get("ids", np.arange(len(x)))
        if ids.shape != (len(x),) or ids.dtype.kind not in "iu" or len(np.unique(ids)) != len(x):
            raise UserError(f"{path}: ids must be {len(x)} different whole numbers, one per image.")
        return _named(Parts.whole(Data(torch.as_tensor(ids).long(), x, y)), arrays, str(path))
    splits = [split for split in ("train", "test", "validation") if f"x_{split}" in arrays and f"y_{split}" in arrays]
    if not splits:
        raise UserError(
            f"{path} must hold arrays x (images) and y (labels), or x_train, y_train, x_test and y_test, but holds "
            f"{', '.join(arrays) or 'nothing'}."
        )
    own = {}
    for split in splits:
        x, y = _labelled(arrays[f"x_{split}"], arrays[f"y_{split}"], f"y_{split}", str(path))
        own[split] = Labelled(y, lambda x=x: x)
    return _named(Parts.in_order(own, by_order=False), arrays, str(path))


def _named(parts: Parts, arrays: dict[str, np.ndarray], path: str) -> Parts:
    """The set with the names of its classes, where its file has them as texts."""
    names = arrays.get("classes")
    if names is None or names.dtype.kind != "U" or names.ndim != 1:
        return parts
    highest = max(int(part.y.max()) for part in parts.own.values())
    if highest >= len(names):
        raise UserError(f"{path} names {len(names)} classes, but holds the label {highest}; name all of them.")
    return replace(parts, classes=tuple(names.tolist()))


def _labelled(images: np.ndarray, labels: np.ndarray, name: str, path: str) -> tuple[Tensor, Tensor]:
    x = as_stored(images, path)
    if not len(x):
        raise UserError(f"{path} holds no images; save at least one.")
    if labels.shape != (len(x),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {name} must be {len(x)} whole numbers, one per image, not {labels.dtype} of shape {labels.shape}."
        )
    if labels.min() < 0:
        raise UserError(f"{path}: {name} must count classes from 0, but holds {labels.min()}.")
    return x, torch.as_tensor(labels.astype(np.int64))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or of an .npy file under the name x; pickled objects are refused."""
    with reading(path):
        try:
            _check_archive(path)
            loaded = np.load(path, allow_pickle=False)
            found = {"x": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
            if not all(isinstance(array, np.ndarray) for array in found.values()):
                raise ValueError("a member that is no array")
            return found
        except UserError:
            raise
        except OSError as e:
            if e.errno is not None:
                raise
            raise UserError(f"{path} is damaged or no {path.suffix} file; write it again with numpy.") from e
        except Exception as e:
            raise UserError(
                f"{path} is damaged, or holds pickled objects, which are never loaded; save plain arrays."
            ) from e


def _check_archive(path: Path) -> None:
    """Refuses an archive that unpacks to far more than it is, before any of it is unpacked."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        sizes = [member.file_size for member in archive.infolist()]
    if len(sizes) > MEMBERS or sum(sizes) > max(UNPACKED, EXPANSION * path.stat().st_size):
        raise UserError(
            f"{path} unpacks to {len(sizes):,} arrays of {sum(sizes) / 2**30:,.1f} GiB, far more than it is; save it "
            "without compression, and only what is needed."
        )


def as_images(array: np.ndarray, name: str) -> Tensor:
    """Float images [b, c, h, w] in [0, 1] from an array of 8-bit or float images, channels first or last or missing."""
    return as_floats(as_stored(array, name))


def as_stored(array: np.ndarray, name: str) -> Tensor:
    """Images [b, c, h, w] from such an array, as uint8 or as floats in [0, 1], whichever they are."""
    if array.dtype.kind != "f" and array.dtype != np.uint8:
        raise UserError(f"{name} must hold 8-bit integers or floats in [0, 1], not {array.dtype}.")
    x = torch.as_tensor(np.require(array, np.uint8 if array.dtype == np.uint8 else np.float32, ["C", "W"]))
    if x.dim() == 3 and x.shape[2] == 1 < x.shape[1]:  # one grey image
        x = x.permute(2, 0, 1)[None].contiguous()
    elif x.dim() == 3:
        x = x[:, None]
    elif x.dim() == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2).contiguous()
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise UserError(
            f"{name} must be [n, h, w], [n, c, h, w] or [n, h, w, c] with 1 or 3 channels, not {array.shape}."
        )
    return x if x.dtype == torch.uint8 else check.images(x, name).clamp(0, 1)
