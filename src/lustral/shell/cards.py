"""Cards: what a weights file is, and where it lies. They are read without loading any network."""

import json
import re
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core.errors import UserError, unknown
from . import transport
from .files import cache, saying, write_text

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
        transport.download(url, about, sha256, "sha256", OWN_COPY)
    path = about.with_suffix(".safetensors")
    if not path.exists():
        there = url.removesuffix(".json") + ".safetensors"
        transport.download(there, path, card(path).sha256, "sha256", OWN_COPY)
    return path


def card(path: Path) -> Card:
    """The card beside a weights file."""
    place = path.with_suffix(".json")
    with saying(place, "read"):
        text = place.read_bytes()
    try:
        found = Card(**json.loads(text))
        objects = isinstance(found.architecture, dict) and isinstance(found.training, dict)
        if not (objects and isinstance(found.image, list) and len(found.image) == 3):
            raise TypeError("architecture and training must be objects, and image a list of three")
        return found
    except (ValueError, TypeError) as e:
        raise UserError(f"{place} is no card of this version of Lustral ({e}); train again or mend it.") from e
