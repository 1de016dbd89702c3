"""What a trained network is worth, in numbers for its card and pictures beside it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from ...core.noise import Key
from ...defence import Defence
from ...denoisers.ideal import FiniteSet
from ...evaluate.protocol import Data
from ...purifiers.presets import diffpure
from ...schedules import VP
from ...training.batches import as_floats

SIGMAS = (0.05, 0.1, 0.2, 0.3)
BATCH = 256
MOST = 2048
"""Images that a denoiser is measured on."""


@torch.no_grad()
def accuracy(model: nn.Module, test: Data) -> dict[str, float]:
    """The share of test images that a classifier has right."""
    right = sum((model(x).argmax(dim=1) == y).sum().item() for x, y in _batches(test, _device(model)))
    return {"test_accuracy": round(right / len(test.ids), 4)}


def denoising(model: nn.Module, test: Data) -> dict[str, float]:
    """Root mean square error per pixel on test images, for the noise levels that the denoiser is good for."""
    test = test[:MOST]
    levels = [sigma for sigma in SIGMAS if model.sigma_min <= sigma <= model.sigma_max]
    return {f"test_rmse_at_{sigma}": round(rmse(model, test, sigma), 4) for sigma in levels}


@torch.no_grad()
def purified(model: nn.Module, classifier: nn.Module, test: Data, images: int = 512) -> dict[str, float]:
    """The share of clean images that a classifier has right behind DiffPure (DDPM, 10 steps from t* = 0.1).

    Nothing for a denoiser that is not made for so much noise.
    """
    if VP().sigma(torch.tensor(0.1, dtype=torch.float64)) > model.sigma_max:
        return {}
    defence = Defence(classifier, diffpure(model, 0.1, "ddpm", steps=10))
    some = test[:images]
    right = 0
    for start in range(0, len(some.ids), BATCH):
        part = some[start : start + BATCH]
        logits = defence.logits(as_floats(part.x).to(_device(model)), Key(0).fold("purified").rng(part.ids))
        right += (logits.argmax(dim=1).cpu() == part.y).sum().item()
    return {"purified_accuracy_at_t0.1": round(right / len(some.ids), 4)}


@dataclass(frozen=True)
class Curve:
    """Peak signal-to-noise ratios in dB per noise level; on the training images no denoiser exceeds ``ideal``."""

    sigmas: list[float]
    test: list[float]
    train: list[float]
    ideal: list[float]


def psnr(model: nn.Module, train: Data, test: Data, levels: int = 8, images: int = 256, bound: bool = True) -> Curve:
    """Denoising measured on test and on training images.

    The bound is the posterior mean over the finite set of all training images, which is the best any denoiser can do
    for images drawn from that set (shown up to 100 dB). A network that comes near it at large noise has learnt the set
    by heart. Without ``bound`` it is left out, since it costs time in proportion to the set.
    """
    edge = math.log(max(model.sigma_min, 0.01)), math.log(min(model.sigma_max, 1.0))
    sigmas = torch.linspace(*edge, levels).exp().tolist()
    some, others = train[:images], test[:images]
    pairs = [(model, others), (model, some)]
    if bound:
        pairs.append((FiniteSet(as_floats(train.x)).to(_device(model)), some))
    rows = [[_decibel(net, data, s) for s in sigmas] for net, data in pairs]
    return Curve([round(s, 4) for s in sigmas], *rows, *([] if bound else [[]]))


@torch.no_grad()
def grid(model: nn.Module, test: Data, images: int = 8) -> Tensor:
    """Pictures [rows, images, c, h, w]: clean, then noisy and denoised for every noise level."""
    test = test[:images]
    x = as_floats(test.x).to(_device(model))
    rows = [x]
    for sigma in SIGMAS:
        if sigma <= model.sigma_max:
            noisy = _noisy(x, test.ids, sigma)
            rows += [noisy.clamp(0, 1), model(noisy, torch.full((len(x),), sigma, device=x.device)).clamp(0, 1)]
    return torch.stack(rows).cpu()


def _decibel(net: nn.Module, data: Data, sigma: float) -> float:
    return round(-20 * math.log10(max(rmse(net, data, sigma), 1e-5)), 2)


@torch.no_grad()
def rmse(net: nn.Module, data: Data, sigma: float) -> float:
    """Root mean square error per pixel at one noise level."""
    total = 0.0
    for start in range(0, len(data.ids), BATCH):
        part = data[start : start + BATCH]
        x = as_floats(part.x).to(_device(net))
        clean = net(_noisy(x, part.ids, sigma), torch.full((len(x),), sigma, device=x.device))
        total += (clean - x).square().flatten(1).mean(dim=1).sum().item()
    return math.sqrt(total / len(data.ids))


def _noisy(x: Tensor, ids: Tensor, sigma: float) -> Tensor:
    return x + sigma * Key(0).fold("rmse", str(sigma)).rng(ids).normal(x)


def _device(net: nn.Module) -> torch.device:
    return next(chain(net.parameters(), net.buffers())).device


def _batches(data: Data, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(data.ids), BATCH):
        part = data[start : start + BATCH]
        yield as_floats(part.x).to(device), part.y.to(device)
