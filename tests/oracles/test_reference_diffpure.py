"""DiffPure written a second time, plainly, in its own coordinates, against the preset in ours.

Nie et al. (ICML 2022): map images to [-1, 1]; diffuse to t* = 0.1 of the VP-SDE with β from 0.1 to 20; go back by Euler
steps of 1e-3 evaluated at the left (noisier) end, to t = 1e-5, so that the last of 100 steps is 9.9e-4; map back. The
score is −net(x, 999·t)/√(1 − ᾱ(t)). Here the network is arbitrary, in float64, and the noise is read at its addresses.
"""

import math

import pytest
import torch
from torch import nn

from lustral.core.kernel import purify
from lustral.core.noise import Key
from lustral.denoisers.base import Meter
from lustral.denoisers.preconditioning import VPEps
from lustral.purifiers.presets import diffpure
from lustral.schedules import VP

T_STAR, END = 0.1, 1e-5


class Net(nn.Module):
    """Nonlinear in the image and in the time k = 999·t; sees its neighbours, so that pixels matter."""

    def forward(self, x, k):
        k = k.view(-1, 1, 1, 1) / 999
        return torch.tanh(1.5 * x + torch.roll(x, 1, dims=3) - 0.3) + torch.cos(5 * k) * x


NET = Net().eval()


def beta(t):
    return 0.1 + t * (20 - 0.1)


def alpha_bar(t):
    return math.exp(-0.5 * (20 - 0.1) * t**2 - 0.1 * t)


def score(x, t):
    k = torch.full((len(x),), 999 * t, dtype=x.dtype)
    return -NET(x, k) / math.sqrt(1 - alpha_bar(t))


def grid():
    """(time, step length) of every step: the left ends of 99 full steps and a shorter one."""
    times = [T_STAR - 1e-3 * i for i in range(100)]
    return [(t, min(1e-3, t - END)) for t in times]


def diffused(image, rng):
    kept, z = alpha_bar(T_STAR), rng.fold("init").normal(image)
    return math.sqrt(kept) * (2 * image - 1) + math.sqrt(1 - kept) * z


def sde(image, rng):
    x = diffused(image, rng)
    for i, (t, h) in enumerate(grid()):
        z = rng.fold("step", i).normal(x)
        x = x + (0.5 * beta(t) * x + beta(t) * score(x, t)) * h + math.sqrt(beta(t) * h) * z
    return (x + 1) / 2


def ode(image, rng):
    x = diffused(image, rng)
    for t, h in grid():
        x = x + (0.5 * beta(t) * x + 0.5 * beta(t) * score(x, t)) * h
    return (x + 1) / 2


def langevin(image, rng):
    """dx = −½λ·[−score(x, 0.01) + (x − x_in)/σ²]·dτ + η·√λ·dw over t* in steps of 0.01, from the image itself."""
    x_in = x = 2 * image - 1
    lam, spread, eta, h = 0.01, 1e-3, 5, 1e-2
    for i in range(10):
        z = rng.fold("step", i).normal(x)
        x = x - 0.5 * lam * (-score(x, 0.01) + (x - x_in) / spread) * h + eta * math.sqrt(lam * h) * z
    return (x + 1) / 2


IMAGES = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CASES = {"sde": (sde, 100), "ode": (ode, 100), "langevin": (langevin, 10)}


def test_the_grid_is_the_published_one():
    assert len(grid()) == 100
    assert grid()[-1] == pytest.approx((1e-3, 9.9e-4))
    assert sum(h for _, h in grid()) == pytest.approx(T_STAR - END)


@pytest.mark.parametrize("solver", CASES)
def test_preset_equals_the_reference(solver):
    """Rounding of sigma ↔ t and of 100 steps is all that may differ."""
    rng = Key(7).rng(torch.tensor([3, 14, 15]))
    ours = purify(diffpure(VPEps(NET, VP()), T_STAR, solver), IMAGES, rng)
    torch.testing.assert_close(ours, CASES[solver][0](IMAGES, rng), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", CASES)
def test_gradient_equals_that_of_the_reference(solver):
    """Plain autograd through the loop above, without a checkpoint."""
    rng, weight = Key(8).rng(3), torch.cos(torch.arange(IMAGES.numel(), dtype=torch.float64)).view_as(IMAGES)
    x = IMAGES.clone().requires_grad_()
    expected = torch.autograd.grad((weight * CASES[solver][0](x, rng)).sum(), x)[0]
    found = torch.autograd.grad((weight * purify(diffpure(VPEps(NET, VP()), T_STAR, solver), x, rng)).sum(), x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("solver", CASES)
def test_one_network_call_a_step(solver):
    meter = Meter()
    purify(diffpure(meter.watch(VPEps(NET, VP())), T_STAR, solver), IMAGES, 0)
    assert meter.here.forward == CASES[solver][1] * len(IMAGES)


def test_each_round_asks_the_network_at_the_same_times():
    seen = []

    class Spy(nn.Module):
        def forward(self, x, k):
            seen.append(float(k[0]))
            return NET(x, k)

    purify(diffpure(VPEps(Spy().eval(), VP()), T_STAR, "sde", steps=4, rounds=2), IMAGES, 0)
    once = [999 * (END + (T_STAR - END) * (1 - i / 4)) for i in range(4)]
    assert seen == pytest.approx(once + once)
