"""Cards: what a weights file is, and where it lies. They are read without loading any network."""

import json
import math
import re
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core.errors import UserError, unknown
from . import transport
from .files import cache, parsed, write_text

LONGEST, HEAVIEST = 2**20, 16
"""Bytes of a card, and of its weights for each parameter: eight, and buffers besides."""
SIDE, NESTED, MANY = 2**16, 8, 100_000
"""Pixels of a side, levels of a description, and a number in it, or of numbers."""
OWN_COPY = "put a copy of the file and its card into a folder and name its path"


@dataclass(frozen=True)
class Card:
    """What a weights file is: everything needed to build the network, to trust it and to make it again."""

    name: str
    kind: str
    """``classifier`` or ``denoiser``."""
    architecture: dict[str, Any]
    """``{"type": name, **arguments}``, nested for preconditioned networks."""
    data: str
    image: list[int]
    """Channels, height, width."""
    command: str
    """The command that trained it."""
    licence: str = "not stated"
    """Whoever trained the weights says it."""
    sha256: str = ""
    """Of the safetensors file."""
    parameters: int = 0
    classes: list[str] = field(default_factory=list)
    """The names of a classifier's labels, in order, where they have some."""
    measured: dict[str, float] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    """What it was trained on: ``data``, ``split``, the number of ``images``, the ``sha256`` of their marks, and whether
    these are the ``whole`` of what it saw (origins.py). Empty: not known."""


def describe(path: Path, about: Card) -> Card:
    """Writes the card of a weights file."""
    write_text(path.with_suffix(".json"), json.dumps(asdict(about), indent=2, ensure_ascii=False) + "\n")
    return about


def zoo() -> dict[str, Path]:
    """The weights that have a name: those that ship with Lustral, and those in the weights folder with their cards."""
    places = cache("weights"), Path(str(files("lustral") / "zoo"))
    found = (path for place in places for path in sorted(place.glob("*.safetensors")))
    return {path.stem: path for path in found if path.with_suffix(".json").exists()}


def find(name: str) -> Path:
    """The weights file that a name, a path or an address means."""
    if name in zoo():
        return zoo()[name]
    if name.startswith(("http://", "https://")):
        return _fetched(name)
    path = Path(name)
    if path.suffix in (".pt", ".pth", ".ckpt", ".pkl", ".bin"):
        raise UserError(
            f"{name} is a pickle, which can run code when loaded. Weights here are what `lustral train` writes; a "
            "network of your own goes through lustral.defend and lustral.assess in Python."
        )
    if path.suffix == ".safetensors" or path.exists():
        return path
    raise unknown("weights", name, zoo())


def _fetched(address: str) -> Path:
    """Weights from the network, kept in the weights folder.

    The address is that of their card and ends with the card's #sha256=…; the card knows the checksum of the weights.
    """
    url, _, sha256 = address.partition("#sha256=")
    if not (url.endswith(".json") and re.fullmatch("[0-9a-f]{64}", sha256)):
        raise UserError(
            f"Weights from the network are named by card and checksum, …/NAME.json#sha256=…, not {address}."
        )
    about = cache("weights") / sha256 / url.rpartition("/")[2]
    if not about.exists():
        transport.download(url, about, sha256, "sha256", OWN_COPY, LONGEST)
    path = about.with_suffix(".safetensors")
    if not path.exists():
        there = url.removesuffix(".json") + ".safetensors"
        known = card(path)
        transport.download(there, path, known.sha256, "sha256", OWN_COPY, HEAVIEST * known.parameters + LONGEST)
    return path


def card(path: Path) -> Card:
    """The card beside a weights file."""
    place = path.with_suffix(".json")
    try:
        found = Card(**parsed(place))
        if wrong := _wrong(found):
            raise TypeError(wrong)
        return found
    except (ValueError, TypeError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{place} is no card of this version of Lustral ({e}); train again or mend it.") from e


def _wrong(about: Card) -> str:
    """What of a card is not what it must be; nothing where all is well."""
    texts = ("name", "kind", "data", "command", "licence", "sha256")
    if other := [name for name in texts if not isinstance(getattr(about, name), str)]:
        return f"{other[0]} must be a text"
    if other := [
        name for name in ("architecture", "measured", "recipe", "versions", "training") if not _named(about, name)
    ]:
        return f"{other[0]} must be an object"
    image = about.image
    if not isinstance(image, list) or len(image) != 3 or not all(type(n) is int and 0 < n <= SIDE for n in image):
        return f"image must be a list of three whole numbers from 1 to {SIDE:,}"
    if not isinstance(about.classes, list) or not all(isinstance(name, str) for name in about.classes):
        return "classes must be a list of texts"
    if type(about.parameters) is not int or not 0 <= about.parameters < 2**40:
        return "parameters must be a whole number"
    if other := [name for name, value in about.measured.items() if not _finite(value)]:
        return f"{other[0]} of what was measured must be a number"
    return _unbuildable(about.architecture)


def _named(about: Card, name: str) -> bool:
    return isinstance(getattr(about, name), dict)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


def _unbuildable(described: dict[str, Any], depth: int = 0) -> str:
    """What of an architecture can be no argument of a network."""
    if depth > NESTED:
        return f"architecture must be nested at most {NESTED} levels deep"
    for name, value in described.items():
        if isinstance(value, dict):
            if wrong := _unbuildable(value, depth + 1):
                return wrong
            continue
        several = value if isinstance(value, list) else [value]
        if len(several) > MANY or not all(one is None or type(one) in (str, bool) or _within(one) for one in several):
            return f"{name} of the architecture must be texts, or numbers up to {MANY:,}, and no more than so many"
        if name.startswith("sigma_") and not (_within(value) and value > 0):
            return f"{name} of the architecture must be above zero"
    return ""


def _within(value: Any) -> bool:
    return _finite(value) and abs(value) <= MANY
