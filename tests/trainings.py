"""Small trainings for the tests of the loop."""

import pytest
import torch
from torch import Tensor, nn

from components import scramble
from lustral.classifiers.small import SmallCNN
from lustral.core.noise import Key
from lustral.denoisers.nets.unet import UNet
from lustral.denoisers.preconditioning import EDM
from lustral.training.batches import Images, Source
from lustral.training.denoising import Denoising
from lustral.training.levels import LogUniform
from lustral.training.loop import train
from lustral.training.objectives import CrossEntropy
from lustral.training.recipe import Recipe

N = 20


RECIPE = Recipe(steps=12, batch=6, shift=0.5)


def data(n: int = N) -> tuple[Tensor, Tensor]:
    """Two kinds of images, bright on the left or on the right."""
    y = torch.arange(n) % 2
    x = 0.2 * Key(1).rng(n).uniform(torch.empty(n, 1, 8, 8))
    x[y == 0, :, :, :4] += 0.6
    x[y == 1, :, :, 4:] += 0.6
    return x, y


def source(n: int = N) -> Source:
    return Source(Images(*data(n)))


def classifier() -> nn.Module:
    return scramble(SmallCNN(width=4, classes=2)).requires_grad_(True)


def denoiser() -> nn.Module:
    return scramble(EDM(UNet(channels=1, width=4, mult=(1, 2), blocks=1), 0.3)).requires_grad_(True)


DENOISING = Denoising(LogUniform(0.005, 0.5), "edm", sigma_data=0.25)


KINDS = {"classifier": (classifier, CrossEntropy(noise=0.1)), "denoiser": (denoiser, DENOISING)}


every_kind = pytest.mark.parametrize(("make", "objective"), KINDS.values(), ids=KINDS.keys())


def finish(model: nn.Module, objective, recipe: Recipe = RECIPE, resume=None) -> list[float]:
    return [now.loss for now in train(model, objective, source(), recipe, resume)]


def weights(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))
