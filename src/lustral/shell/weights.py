"""Networks on disk: safetensors with a card beside them. Nothing executes code from a file."""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..classifiers.resnet import ResNet
from ..classifiers.small import SmallCNN
from ..classifiers.whitened import WhitenedResNet
from ..classifiers.wide import WideResNet
from ..core import memory
from ..core.errors import UserError, unknown
from ..core.inference import differentiable
from ..denoisers import preconditioning
from ..denoisers.nets.ddpm import DDPM
from ..denoisers.nets.ddpmpp import DDPMpp
from ..denoisers.nets.refinenet import RefineNet
from ..denoisers.nets.unet import UNet
from ..schedules import VP, DiscreteVP
from . import blueprint
from .cards import Card, card, describe, find
from .files import checksum, reading, replacing
from .terminal import note

# What a card may name. A card is data: names outside these tables are refused.
ARCHITECTURES: dict[str, Callable[..., Any]] = {
    "SmallCNN": SmallCNN,
    "ResNet": ResNet,
    "WideResNet": WideResNet,
    "WhitenedResNet": WhitenedResNet,
    "UNet": UNet,
    "DDPM": DDPM,
    "DDPMpp": DDPMpp,
    "RefineNet": RefineNet,
    "EDM": preconditioning.EDM,
    "VPEps": preconditioning.VPEps,
    "VPredict": preconditioning.VPredict,
    "NCSN": preconditioning.NCSN,
}
SCHEDULES: dict[str, Callable[..., Any]] = {
    "VP": VP,
    "DiscreteVP": DiscreteVP,
    "DiscreteVP.linear": DiscreteVP.linear,
    "DiscreteVP.cosine": DiscreteVP.cosine,
}


CARDS: WeakKeyDictionary[nn.Module, Card] = WeakKeyDictionary()
"""The cards of the networks that were loaded, as long as these live."""
PLACES: WeakKeyDictionary[nn.Module, Path] = WeakKeyDictionary()
"""The files that they come from."""
FAR = 2.0


def say_far(about: Card, x: Tensor) -> bool:
    """Says it where images [b, c, h, w] have sides of twice or half what a network was trained on; whether it did."""
    (_, *trained), sides = about.image, x.shape[2:]
    far = any(not own / FAR < side < own * FAR for side, own in zip(sides, trained, strict=True))
    if far:
        given, known = (f"{width}×{height}" for height, width in (sides, trained))
        note(f"{about.name} was trained on images of {known}, and {given} is far from that: look at what comes out.")
    return far


def build(architecture: dict[str, Any], known: Mapping[str, Callable[..., Any]] = ARCHITECTURES) -> Any:
    """A network from its description, ``{"type": ..., **arguments}``; its ``schedule`` is described likewise."""
    description = dict(architecture)
    kind = description.pop("type", None)
    if not isinstance(kind, str) or kind not in known:
        raise unknown("architecture", kind, known)
    arguments = {
        name: build(value, SCHEDULES if name == "schedule" else ARCHITECTURES)
        if isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in description.items()
    }
    try:
        return known[kind](**arguments)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise UserError(f"The card's description of {kind} does not fit this version of Lustral: {e}.") from e


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state in float16, but for tensors of whole numbers and those with numbers too large for it."""
    small = {name: t.half() for name, t in state.items() if t.is_floating_point()}
    return dict(state) | {name: t for name, t in small.items() if t.isfinite().all()}


def save(path: Path, model: nn.Module, card: Card, half: bool = False, metadata: dict[str, str] | None = None) -> Card:
    """Writes ``path`` (.safetensors) and its card (.json), each whole or not at all; returns the completed card.

    With ``half`` the file holds numbers in float16; the network that is loaded from it computes in float32.
    ``metadata`` stands in the file beside the numbers.
    """
    state = halved(model.state_dict()) if half else model.state_dict()
    state = {name: t.detach().cpu().contiguous() for name, t in state.items()}
    with replacing(path) as scratch:
        scratch.write_bytes(to_bytes(state, metadata))
        sha256 = checksum(scratch, "sha256")
    facts = asdict(card) | {"sha256": sha256, "parameters": sum(p.numel() for p in model.parameters())}
    return describe(path, Card(**facts))


@differentiable
def load(name: str, kind: str) -> tuple[nn.Module, Card]:
    """The frozen network that a name or a path means, with its card; ``kind`` is what the caller needs."""
    path = find(name)
    with reading(path):
        pass
    about = card(path)
    if about.kind != kind:
        raise UserError(f"{name} is a {about.kind}, but a {kind} is needed here.")
    found = checksum(path, "sha256")
    if found != about.sha256:
        raise UserError(
            f"{path} is damaged or was changed: its sha256 is {found[:12]}…, its card says {about.sha256[:12]}…."
        )
    try:
        model = blueprint.build(about, load_file(path), build)
    except (SafetensorError, RuntimeError, blueprint.Unfit) as e:
        if memory.lacking(e):
            raise
        reason = str(e).partition("\n")[0]
        raise UserError(f"{path} does not hold the network that its card describes ({reason}); train it again.") from e
    CARDS[model], PLACES[model] = about, path.resolve()
    return model.requires_grad_(False), about


def as_loaded(model: nn.Module) -> bool:
    """Whether a network that was loaded still holds the numbers of its file."""
    try:
        there = load_file(PLACES[model])
    except (OSError, SafetensorError):
        return False
    state = model.state_dict()
    return state.keys() == there.keys() and all(torch.equal(t.cpu(), there[k].to(t.dtype)) for k, t in state.items())


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a training state atomically."""
    content = io.BytesIO()
    torch.save(state, content)
    with replacing(path) as scratch:
        scratch.write_bytes(content.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a training state; only tensors and plain values are accepted."""
    with reading(path):
        try:
            found = torch.load(path, weights_only=True, map_location="cpu")
        except OSError:
            raise
        except Exception as e:
            raise UserError(f"{path} is damaged or no training checkpoint; delete it to start again.") from e
    if not isinstance(found, dict) or not {"model", "optimiser", "average", "step", "identity"} <= found.keys():
        raise UserError(f"{path} is no training checkpoint of Lustral; delete it to start again.")
    return found
