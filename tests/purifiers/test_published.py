"""GNSP and ADBM: the noise levels that the released codes ask their networks about, how often, and ADBM's steps.

Their timestep i, counted from 0, stands after i + 1 betas: it is our time (i + 1)/1000.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from components import Counted, gaussian_mixture, images
from lustral.core.kernel import purify
from lustral.core.noise import Key
from lustral.denoisers.base import Denoiser
from lustral.purifiers.presets import adbm, gnsp
from lustral.schedules import DiscreteVP

KEY = Key(31)


class Asked:
    """A cheap denoiser that remembers the noise level of every call."""

    sigma_min, sigma_max = 0.0, 100.0

    def __init__(self):
        self.levels = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        (level,) = sigma.tolist()
        self.levels.append(level)
        return 0.9 * x


def levels(betas: Tensor, timesteps: list[int]) -> list[float]:
    """½·√((1 − ᾱ)/ᾱ) at timesteps counted from 0."""
    abar = (1 - betas).cumprod(0)[timesteps]
    return (0.5 * torch.sqrt((1 - abar) / abar)).tolist()


BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
IMAGE = images(1, (1, 2, 2), torch.float64)


@pytest.mark.parametrize(
    ("level", "steps", "grid"),
    [
        (200, 5, [39, 79, 119, 159, 199]),
        (125, 5, [24, 49, 74, 99, 124]),
        (30, 1, [29]),
        (30, None, list(range(30))),
    ],
    ids=str,
)
def test_gnsp_asks_about_the_published_grids(level, steps, grid):
    """T/k − 1, 2T/k − 1, …, T − 1, from the last to the first (section 8 of the specification)."""
    asked = Asked()
    purify(gnsp(asked, (level,), steps=steps), IMAGE, KEY)
    assert asked.levels == pytest.approx(levels(BETAS, grid[::-1]), rel=1e-9)


@pytest.mark.parametrize(
    ("given", "calls"),
    [
        ({}, 470),
        ({"levels": (30, 30, 30, 30, 50, 50, 80, 80)}, 380),
        ({"levels": (30, 30, 30, 30, 50, 50, 200, 200)}, 620),
    ],
    ids=["CIFAR-10", "SVHN", "ImageNet"],
)
def test_gnsp_takes_the_published_number_of_calls(given, calls):
    counted = Counted(Asked())
    purify(gnsp(counted, **given), IMAGE, KEY)
    assert counted.rows == [1] * calls


@pytest.mark.parametrize(
    ("given", "timesteps"),
    [
        ({}, [99, 79, 59, 39, 19]),
        ({"steps": 1}, [99]),
        ({"steps": 2}, [99, 49]),
        ({"steps": 10}, list(range(99, -1, -10))),
        ({"steps": 20}, list(range(99, -1, -5))),
    ],
    ids=str,
)
def test_adbm_asks_about_the_published_timesteps_and_no_others(given, timesteps):
    """On the continuous process, whose ᾱ(t) is exp(−½·19.9·t² − 0.1·t), and on the released code's own betas."""
    asked = Asked()
    purify(adbm(asked, **given), IMAGE, KEY)
    abar = [math.exp(-0.5 * 19.9 * t**2 - 0.1 * t) for t in ((i + 1) / 1000 for i in timesteps)]
    assert asked.levels == pytest.approx([0.5 * math.sqrt((1 - a) / a) for a in abar], rel=1e-9)
    asked = Asked()
    purify(adbm(asked, **given, schedule=DiscreteVP.linear(1e-6, 0.02)), IMAGE, KEY)
    released = torch.linspace(1e-6, 0.02, 1000, dtype=torch.float64)
    assert asked.levels == pytest.approx(levels(released, timesteps), rel=1e-9)


class Bold:
    """The estimate of a mixture with too much contrast: some pixels leave [0, 1]."""

    sigma_min, sigma_max = 0.0, 100.0
    mixture = gaussian_mixture(dtype=torch.float64)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 + 1.5 * (self.mixture(x, sigma) - 0.5)


def ddim_by_hand(denoiser: Denoiser, x: Tensor, z: Tensor, cut: bool) -> tuple[Tensor, float]:
    """Five DDIM steps on [-1, 1] with estimates cut but not noise, and the share of pixels that were cut.

    x_s = √ᾱ_s·x̂₀ + √(1 − ᾱ_s)·ε with the network's own ε, as diffusers does with use_clipped_model_output=False.
    """
    abar = [math.exp(-0.5 * 19.9 * t**2 - 0.1 * t) for t in (0.1, 0.08, 0.06, 0.04, 0.02, 0.0)]
    v, outside = math.sqrt(abar[0]) * (2 * x - 1) + math.sqrt(1 - abar[0]) * z, []
    for now, then in pairwise(abar):
        sigma = torch.full((len(x),), 0.5 * math.sqrt((1 - now) / now), dtype=x.dtype)
        clean = 2 * denoiser(0.5 + v / (2 * math.sqrt(now)), sigma) - 1
        eps = (v - math.sqrt(now) * clean) / math.sqrt(1 - now)
        outside.append((clean.abs() > 1).double().mean().item())
        v = math.sqrt(then) * (clean.clamp(-1, 1) if cut else clean) + math.sqrt(1 - then) * eps
    return ((v + 1) / 2).clamp(0, 1), min(outside[:-1])


def test_adbm_is_ddim_that_cuts_estimates_and_not_noise():
    x = images(4, dtype=torch.float64).requires_grad_()
    z = KEY.rng(4).fold("init").normal(x)
    found, (wanted, outside) = purify(adbm(Bold()), x, KEY), ddim_by_hand(Bold(), x, z, cut=True)
    assert outside > 0.02
    assert (wanted - ddim_by_hand(Bold(), x, z, cut=False)[0]).abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    upstream = KEY.fold("upstream").rng(4).normal(x)
    grad, wanted_grad = (torch.autograd.grad(out, x, upstream)[0] for out in (found, wanted))
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-9, atol=1e-9)
