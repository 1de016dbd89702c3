"""What ``lustral train`` can train: from options to a network and an objective."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...classifiers.whitened import WhitenedResNet
from ...core import memory
from ...core.errors import UserError, unknown
from ...core.threat import Linf
from ...evaluate.protocol import Data
from ...schedules import VP
from ...training.adbm import ADBM
from ...training.addt import ADDT, ADDTUnmapped
from ...training.adversarial import PGDAT, TRADES
from ...training.batches import as_floats, spread_rows
from ...training.denoising import Denoising
from ...training.levels import Geometric, LogNormal, LogUniform, Times
from ...training.objectives import CrossEntropy, Objective
from .. import standard, weights
from ..options import Adversary, Network, Noise, TaskName
from . import measures

TASKS = TaskName.__args__
CLASSIFIERS = ("classifier", "pgd-at", "trades")
GUIDED = ("addt", "adbm")
RESNETS = {"resnet": "ResNet", "whitened": "WhitenedResNet"}
PUBLISHED_UNETS = {"ddpm": "DDPM", "ddpm++": "DDPMpp"}
SIGMA_MIN = 0.01


@dataclass(frozen=True)
class Task:
    """What a training needs besides images and a recipe.

    ``guide`` is a frozen classifier that the objective asks, ``measure`` what is measured on test images.
    """

    kind: str
    architecture: dict[str, Any]
    model: nn.Module
    objective: Objective
    guide: nn.Module | None = None
    measure: Callable[[nn.Module, Data], dict[str, float]] = measures.accuracy


@dataclass(frozen=True)
class Asked:
    """The options of one training."""

    task: str
    network: Network
    noise: Noise
    adversary: Adversary
    smoothing: float = 0.0
    seed: int = 0


def before(asked: Asked) -> list[str]:
    """The trained networks that a training builds on: the one to start from, and the one that guides."""
    names = [asked.network.start, asked.adversary.guide if asked.task in GUIDED else None]
    return [name for name in names if name is not None]


def judges(asked: Asked) -> list[str | None]:
    """The classifiers whose labels the images' are to be: the one to start from, or the one that guides."""
    if asked.task in CLASSIFIERS:
        return [asked.network.start]
    return [asked.adversary.guide] if asked.task in GUIDED else []


def make(asked: Asked, train_set: Data, classes: int = 0) -> Task:
    """The network and the objective that the options describe, for these images of at least so many classes."""
    if asked.task not in TASKS:
        raise unknown("task", asked.task, TASKS)
    if not 0 < asked.noise.t_max <= 1 or _largest(asked.noise) <= SIGMA_MIN:
        raise UserError(
            f"t_max must lie in (0, 1] and mean more noise than sigma={SIGMA_MIN}, which {asked.noise.t_max} does not."
        )
    if not 0 <= asked.smoothing < 1 or asked.adversary.steps < 1 or not asked.adversary.beta >= 0:
        raise UserError("Training needs 0 ≤ smoothing < 1, at least one step of search and beta ≥ 0.")
    if asked.network.levels < 1 or asked.network.blocks < 1:
        raise UserError("A network needs at least one level and one block.")
    kind = "classifier" if asked.task in CLASSIFIERS else "denoiser"
    some = train_set.x[spread_rows(len(train_set.x), 10_000)]
    spread = round(as_floats(some).std().item(), 4)
    if kind == "denoiser" and not spread:
        raise UserError("All training images are one even grey, of which a denoiser learns nothing; check the data.")
    architecture, model = _network(asked, kind, train_set, spread, classes)
    if kind == "classifier":
        return Task(kind, architecture, model, _robust(asked))
    base = _base(asked.noise, architecture.get("sigma_data", spread))
    if asked.task == "denoiser":
        return Task(kind, architecture, model, base, None, measures.denoising)
    named = standard.named("guide", asked.adversary.guide, "--adversary.guide")
    guide = _trained(named, "classifier", train_set)[0]

    def measure(model: nn.Module, test: Data) -> dict[str, float]:
        return measures.denoising(model, test) | measures.purified(model, guide, test)

    return Task(kind, architecture, model, _guided(asked, base, guide), guide, measure)


def _network(asked: Asked, kind: str, train_set: Data, spread: float, classes: int) -> tuple[dict[str, Any], nn.Module]:
    """The network's description and itself: new, or the one to start from."""
    if asked.network.start is not None:
        model, about = _trained(asked.network.start, kind, train_set)
        if kind == "denoiser" and _largest(asked.noise) > 1.0001 * model.sigma_max:
            raise UserError(
                f"{asked.network.start} is made for sigma up to {model.sigma_max:g}, t_max={asked.noise.t_max:g} is "
                f"{_largest(asked.noise):.4g}; choose a smaller --noise.t_max."
            )
        return about.architecture, model
    channels, classes = train_set.x.shape[1], max(classes, int(train_set.y.max()) + 1)
    describe = _classifier if kind == "classifier" else _denoiser
    architecture = describe(asked, channels, classes if kind == "classifier" else spread)
    torch.manual_seed(asked.seed)
    try:
        model = weights.build(architecture)
        if isinstance(model, WhitenedResNet):
            model.fit(as_floats(train_set.x[spread_rows(len(train_set.x), 5000)]))
        _try(deepcopy(model), kind, train_set)  # its running statistics begin with the training
    except (ValueError, ArithmeticError) as e:
        raise UserError(
            f"This network does not work on these images: {e}; choose another width, or more images."
        ) from e
    return architecture, model


@torch.no_grad()
def _try(model: nn.Module, kind: str, images: Data) -> torch.Tensor:
    """What the network says of two images, which it must be able to take."""
    x = as_floats(images.x[:2])
    try:
        return model(x) if kind == "classifier" else model(x, torch.full((len(x),), model.sigma_max / 2))
    except RuntimeError as e:
        if memory.lacking(e):
            raise
        sides = "×".join(map(str, x.shape[2:]))
        raise UserError(
            f"The network cannot take images of {sides}; choose fewer levels, another patch or another network."
        ) from e


def try_part(task: Task, images: Data, count: int) -> None:
    """Refuses parts of a batch with so few images that a classifier's batch normalisation has nothing to compare."""
    try:
        if task.kind == "classifier" and count <= 1:
            deepcopy(task.model).train()(as_floats(images.x[:1]))
    except ValueError as e:
        raise UserError(
            "This network cannot be trained on one image at a time; enlarge --recipe.batch or choose a smaller "
            "--recipe.accumulate."
        ) from e


def _trained(name: str, kind: str, train_set: Data) -> tuple[nn.Module, weights.Card]:
    """A network that exists already, for images like these and all their classes."""
    model, about = weights.load(name, kind)
    shape, classes = list(train_set.x.shape[1:]), int(train_set.y.max()) + 1
    if about.image != shape:
        raise UserError(f"{name} takes images of shape {about.image}, but the data's are {shape}; choose another.")
    if kind == "classifier" and _try(model, kind, train_set).shape[1] < classes:
        raise UserError(f"{name} knows fewer classes than the {classes} of the data; choose another.")
    return model, about


def _width(network: Network, default: int) -> int:
    width = default if network.width is None else network.width
    if width < 2 or width % 2:
        raise UserError(f"width must be an even number from 2, not {width}.")
    return width


def _classifier(asked: Asked, channels: int, classes: int) -> dict[str, Any]:
    net = asked.network
    size = {"channels": channels, "classes": classes}
    if net.kind in (None, "small"):
        return {"type": "SmallCNN", "width": _width(net, 32), **size}
    if net.kind in RESNETS:
        mirror = {"mirror": True} if net.mirror and net.kind == "whitened" else {}
        return {"type": RESNETS[net.kind], "width": _width(net, 64), "activation": net.activation, **mirror, **size}
    if net.kind == "wide":
        widen = 10 if net.width is None else net.width
        if widen < 1:
            raise UserError(f"width must be at least 1 for wide, not {widen}.")
        return {"type": "WideResNet", "depth": net.depth, "widen": widen, "activation": net.activation, **size}
    raise UserError(f"{net.kind} is a network for denoisers; a classifier is small, resnet, whitened or wide.")


def _denoiser(asked: Asked, channels: int, spread: float) -> dict[str, Any]:
    net, objective = asked.network, asked.noise.objective
    limits = {"sigma_min": SIGMA_MIN, "sigma_max": _limit(asked)}
    if objective == "dsm":
        if net.kind not in (None, "unet", "refinenet"):
            raise UserError(
                f"Objective dsm trains a network that is not told the noise: unet or refinenet, not {net.kind}."
            )
        refinenet = {"type": "RefineNet", "channels": channels, "width": _width(net, 128)}
        return {"type": "NCSN", "net": refinenet if net.kind == "refinenet" else _inner(net, channels)[0], **limits}
    if net.kind == "refinenet":
        raise UserError("refinenet is not told the noise; train it with --noise.objective=dsm.")
    inner, scale = _inner(net, channels)
    if objective in ("ddpm", "v"):
        schedule = {"type": "VP", "t_max": _bridged(asked.noise) if asked.task == "adbm" else asked.noise.t_max}
        return {
            "type": "VPEps" if objective == "ddpm" else "VPredict",
            "net": inner,
            "schedule": schedule,
            "time_scale": scale,
        }
    return {"type": "EDM", "net": inner, "sigma_data": spread, **limits}


def _inner(net: Network, channels: int) -> tuple[dict[str, Any], float]:
    """A raw network, and the scale of the times that its embedding is made for."""
    if net.kind in (None, "unet"):
        shape = {"mult": [2**level for level in range(net.levels)], "blocks": net.blocks, "patch": net.patch}
        plain = {} if net.normalised else {"normalised": False}
        return {"type": "UNet", "channels": channels, "width": _width(net, 16), **shape, **plain}, 1.0
    if net.kind in PUBLISHED_UNETS:
        size = {"channels": channels, "width": _width(net, 128), "blocks": net.blocks}
        return {"type": PUBLISHED_UNETS[net.kind], **size}, 999.0
    raise UserError(f"{net.kind} is a network for classifiers; a denoiser is unet, ddpm, ddpm++ or refinenet.")


def _largest(noise: Noise) -> float:
    return VP().sigma(torch.tensor(noise.t_max, dtype=torch.float64)).item()


def _limit(asked: Asked) -> float:
    """The same for a new network's card, not rounded below what is trained; ADBM trains on its bridges only."""
    noise = replace(asked.noise, t_max=_bridged(asked.noise)) if asked.task == "adbm" else asked.noise
    return math.ceil(1e4 * _largest(noise)) / 1e4


def _bridged(noise: Noise) -> float:
    """The latest time at which ADBM's bridges begin."""
    return min(0.2, noise.t_max)


def _robust(asked: Asked) -> Objective:
    """The objective of a classifier."""
    adversary = asked.adversary
    if asked.task == "classifier":
        return CrossEntropy(smoothing=asked.smoothing)
    eps = _eps(adversary)
    threat, size = Linf(eps), 2.5 * eps / adversary.steps
    if asked.task == "pgd-at":
        return PGDAT(threat, adversary.steps, size, asked.smoothing)
    return TRADES(threat, adversary.beta, adversary.steps, size, asked.smoothing)


def _guided(asked: Asked, base: Denoising, guide: nn.Module) -> Objective:
    """ADDT or ADBM, on top of an objective for denoisers."""
    adversary = asked.adversary
    if asked.task == "adbm":
        if asked.noise.t_max < 0.1:
            raise UserError(f"ADBM's bridges begin at t = 0.1 or later; t_max = {asked.noise.t_max} leaves none.")
        return ADBM(base, guide, t_high=_bridged(asked.noise), eps=_eps(adversary))
    return ADDT(base, guide) if adversary.mapped else ADDTUnmapped(base, guide, _eps(adversary))


def _eps(adversary: Adversary) -> float:
    if adversary.eps is None:
        raise UserError(f"No radius is usual for this data; say --adversary.eps ({standard.KNOWN}).")
    return adversary.eps


def _base(noise: Noise, spread: float) -> Denoising:
    largest = _largest(noise)
    if noise.objective == "ddpm":
        return Denoising(Times(VP(t_max=noise.t_max), t_max=noise.t_max), "noise")
    if noise.objective == "v":
        return Denoising(Times(VP(t_max=noise.t_max), t_max=noise.t_max), "v")
    if noise.objective == "dsm":
        steps = max(2, math.ceil(math.log(largest / SIGMA_MIN) / math.log(1.1)))
        return Denoising(Geometric(SIGMA_MIN, largest, steps), "noise")
    if noise.objective == "edm":
        return Denoising(LogNormal(sigma_max=largest), "edm", spread)
    return Denoising(LogUniform(SIGMA_MIN, largest), "edm", spread)
