"""Which images a network was trained on: marks of them lie in its weights file, or are made again from a standard set.

A mark is the first 8 bytes of the SHA-256 of an image at 8 bits: whoever has the image knows it again, and nobody sees
it from its mark.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.networks import Networks, reachable
from ..defence import Defence
from ..evaluate.origin import Origin
from . import weights
from .cards import Card, card, find
from .images import data as datasets
from .images import names

KEPT = "training-marks"
"""What the marks are called in the metadata of a weights file, in base64."""


class Trained(NamedTuple):
    """Marks [m] of images that a network was trained on; ``whole``: of all of them."""

    marks: np.ndarray
    whole: bool


def marks(x: Tensor) -> np.ndarray:
    """A mark [n] of every image [n, c, h, w], which are 8-bit or floats in [0, 1]."""
    found = []
    for part in x.split(4096):
        pixels = part if part.dtype == torch.uint8 else (255 * part).round().clamp(0, 255).to(torch.uint8)
        found += [hashlib.sha256(image.tobytes()).digest()[:8] for image in pixels.cpu().contiguous().numpy()]
    return np.frombuffer(b"".join(found), "<u8")


def kept(x: Iterable[Tensor], others: Iterable[str]) -> Trained:
    """Of a training on these images, and of the networks, by name, from which it started or that guided it."""
    before = [trained(find(name)) for name in others]
    found = np.concatenate([*(marks(part) for part in x), *(each.marks for each in before)])
    return Trained(np.unique(found), all(each.whole for each in before))


def told(data: str, split: str, made: Trained) -> dict[str, Any]:
    """What a card says of it."""
    return {"data": data, "split": split, "images": len(made.marks), "sha256": _digest(made.marks), "whole": made.whole}


def written(made: Trained) -> dict[str, str]:
    """The same for the metadata of a weights file."""
    return {KEPT: base64.b64encode(made.marks.tobytes()).decode("ascii")}


def trained(path: Path) -> Trained:
    """What is known of the training of a weights file; its marks are not the whole where its card does not fit them."""
    about = card(path)
    found = _in_file(path)
    if found is None:
        found = _of_a_set(str(about.training.get("data", about.data)), str(about.training.get("split", "train")))
    if found is None:
        return Trained(np.empty(0, "<u8"), False)
    fits = _digest(found) == about.training.get("sha256")
    return Trained(found, fits and about.training.get("whole") is True)


def _digest(found: np.ndarray) -> str:
    return hashlib.sha256(found.tobytes()).hexdigest()


def _in_file(path: Path) -> np.ndarray | None:
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(KEPT)
        return None if text is None else np.frombuffer(base64.b64decode(text, validate=True), "<u8")
    except (OSError, SafetensorError, ValueError, binascii.Error):
        return None


@lru_cache(maxsize=4)
def _of_a_set(name: str, split: str) -> np.ndarray | None:
    """The marks of a standard set's images, sorted; None where it is not here. A card names no other files."""
    try:
        return np.unique(marks(datasets.load_bytes(name, split).x)) if name in names.NAMES else None
    except UserError:
        return None


def of(defence: Defence, x: Tensor, source: str | None = None) -> Origin:
    """How images [n, c, h, w] in [0, 1], of a ``source``, meet those that a defence's networks were trained on."""
    nets = {net: about for net in _modules(defence) if (about := weights.CARDS.get(net)) is not None}
    asked, by, seen, unsaid = marks(x), {}, np.zeros(len(x), dtype=bool), []
    known = _all_of(defence, nets)
    for net, about in nets.items():
        there = trained(weights.PLACES[net])
        met = np.isin(asked, there.marks)
        by[about.name], seen = int(met.sum()), seen | met
        known = known and there.whole
        if not len(there.marks) and about.data == source:
            unsaid.append(about.name)
    return Origin(len(x), by, int(seen.sum()), known, tuple(unsaid))


def _modules(*things: object) -> list[nn.Module]:
    return [thing for thing in reachable(*things) if isinstance(thing, nn.Module)]


def _all_of(defence: Defence, nets: dict[nn.Module, Card]) -> bool:
    """Whether these networks, unchanged since they were loaded, are all that a defence has learned."""
    parts = [defence.classifier] + ([defence.purifier] if defence.purifier is not None else [])
    if Networks(*parts).foreign or not all(any(net in nets for net in _modules(part)) for part in parts):
        return False
    inside = {id(module) for net in nets for module in net.modules()}
    others = [module for module in _modules(*parts) if id(module) not in inside]
    held = [t for module in others for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
    return not held and all(weights.as_loaded(net) for net in nets)
