"""The pictures of the report: a grid of images for each system, and a film of one purification."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .looks import Look

TILE = 96  # px: smaller images are enlarged by a whole factor, since printers smooth what CSS keeps sharp
FRAMES = 10


class Tile(NamedTuple):
    """A picture, what it is, what the classifier said of it (None: not asked) and whether that was right."""

    src: str
    what: str
    said: str | None
    right: bool | None


def called(label: int, names: Sequence[str]) -> str:
    """What people call a label; -1 is no label."""
    return "abstained" if label == -1 else names[label] if label < len(names) else str(label)


def _png(image: np.ndarray) -> str:
    """The data URI of an image [c, h, w] with 1 or 3 channels, clipped to [0, 1]."""
    from PIL import Image

    pixels = (np.nan_to_num(image).clip(0, 1) * 255).round().astype(np.uint8)
    factor = max(1, math.ceil(TILE / max(pixels.shape[1:])))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    out = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def gain(looks: Iterable[Look], pictures: dict[str, np.ndarray]) -> float:
    """The largest amplification, to two digits, that shows every change on the page without clipping."""
    pairs = [(pictures.get(f"{look.name}/clean"), pictures.get(f"{look.name}/attacked")) for look in looks]
    largest = max((np.abs(b - a).max(initial=0) for a, b in pairs if a is not None and b is not None), default=0)
    if not 1e-6 < largest < np.inf:
        return 1.0
    scale = 10 ** (math.floor(math.log10(0.5 / largest)) - 1)
    return float(f"{math.floor(0.5 / largest / scale + 1e-6) * scale:.2g}")


def attacked(looks: Iterable[Look], pictures: dict[str, np.ndarray]) -> bool:
    """Whether any picture is of an attack."""
    pairs = [(pictures.get(f"{look.name}/clean"), pictures.get(f"{look.name}/attacked")) for look in looks]
    return any(b is not None and not np.array_equal(a, b) for a, b in pairs)


def grid(look: Look, pictures: dict[str, np.ndarray], gain: float, count: int, names: Sequence[str]) -> dict | None:
    """One system's first ``count`` pictures: a row per image of clean, attacked, amplified change and purified."""
    clean, attacked, purified = (pictures.get(f"{look.name}/{kind}") for kind in ("clean", "attacked", "purified"))
    if attacked is not None and np.array_equal(attacked, purified):
        purified = None  # nothing purifies here
    if attacked is not None and np.array_equal(attacked, clean):
        attacked = None  # nothing attacks here
    change = 0.5 + gain * (attacked - clean) if clean is not None and attacked is not None else None
    columns = {"clean": clean, "attacked": attacked, f"change ×{gain:g}": change, "purified": purified}
    columns = {what: images for what, images in columns.items() if images is not None}
    said, y = pictures.get(f"{look.name}/said"), pictures.get("y")
    asked = {"clean": 0, "attacked": 1, "purified": 2} if said is not None else {}

    def tile(what: str, i: int) -> Tile:
        if what not in asked:
            return Tile(_png(columns[what][i]), what, None, None)
        label = int(said[i][asked[what]])
        return Tile(_png(columns[what][i]), what, called(label, names), None if y is None else label == int(y[i]))

    count = min([count, *map(len, columns.values())]) if columns else 0
    rows = [
        (None if y is None else called(int(y[i]), names), [tile(what, i) for what in columns]) for i in range(count)
    ]
    return {"look": look, "columns": list(columns), "rows": rows} if rows else None


def strip(look: Look, pictures: dict[str, np.ndarray]) -> dict | None:
    """Up to ten frames of one system's purification, evenly spaced from the attacked to the purified image."""
    frames = pictures.get(f"{look.name}/trajectory")
    if frames is None or not len(frames):
        return None
    steps = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)).tolist()
    return {"look": look, "last": steps[-1], "frames": [(step, _png(frames[step])) for step in steps]}
