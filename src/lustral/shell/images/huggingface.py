"""Image sets from Hugging Face, through their library ``datasets`` (extra ``huggingface``); it runs no foreign code."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.errors import UserError
from . import decode
from .splits import Labelled, Parts

IMAGES = ("image", "img")
LABELS = ("label", "fine_label", "labels")


def read(name: str) -> Parts:
    """The set of that name, or of a local folder that ``datasets`` reads; without a test split, validation is it."""
    try:
        import datasets
    except ImportError as e:
        raise UserError("Data from Hugging Face needs datasets: pip install 'lustral[huggingface]'.") from e
    try:
        found = datasets.load_dataset(name)
    except Exception as e:
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(f"Cannot load {name!r} from Hugging Face ({reason}); check the name and the network.") from e
    tables = {split: found[split] for split in ("train", "test", "validation") if split in found}
    if "test" not in tables and "validation" in tables:
        tables["test"] = tables.pop("validation")
    if not tables:
        raise UserError(f"{name} has no split train, test or validation, but {', '.join(found)}; choose another set.")
    parts = Parts.in_order({split: _labelled(table, name) for split, table in tables.items()}, by_order=False)
    table = next(iter(tables.values()))
    names = getattr(table.features[_column(table, LABELS, name)], "names", None)
    return replace(parts, classes=tuple(names or ()))


def _labelled(table: Any, name: str) -> Labelled:
    image, label = _column(table, IMAGES, name), _column(table, LABELS, name)
    y = np.asarray(table[label][:])
    if y.dtype.kind not in "iu" or y.ndim != 1 or (len(y) and y.min() < 0):
        raise UserError(f"{name}: the column {label} must hold classes as whole numbers from 0.")

    # Their own reader opens whatever Pillow knows.
    kind = table.features[image]
    if type(kind).__name__ == "Image":
        table = table.cast_column(image, replace(kind, decode=False))

    def pixels() -> torch.Tensor:
        found = [_pixels(picture, name) for picture in table[image]]
        decode.say_white(sum(one.transparent for one in found), len(found))
        pictures = [np.atleast_3d(one.array).transpose(2, 0, 1) for one in found]
        if len({p.shape[1:] for p in pictures}) > 1:
            raise UserError(f"{name} holds images of several sizes; resize them to one.")
        channels = max(p.shape[0] for p in pictures)
        return torch.from_numpy(np.stack([np.broadcast_to(p, (channels, *p.shape[1:])) for p in pictures]))

    return Labelled(torch.from_numpy(y.astype(np.int64)), pixels)


def _column(table: Any, names: tuple[str, ...], name: str) -> str:
    found = next((column for column in names if column in table.column_names), None)
    if found is None:
        raise UserError(f"{name} needs a column {' or '.join(names)}, but has {', '.join(table.column_names)}.")
    return found


def _pixels(encoded: Any, name: str) -> decode.Pixels:
    """A picture as bytes, from ``datasets``' own record of it: the content of its file, or where that lies."""
    if not isinstance(encoded, dict) or not (encoded.get("bytes") or encoded.get("path")):
        raise UserError(f"{name} must hold its images as pictures; choose another set.")
    content, place = encoded.get("bytes"), encoded.get("path")
    name = f"A picture of {name}"
    with decode.opened(io.BytesIO(content), name) if content else decode.open_file(Path(place)) as one:
        return decode.flat(one, "L" if one.mode in decode.GREY else "RGB")
