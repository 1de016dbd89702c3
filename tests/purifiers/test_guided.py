"""GDMP's and AGDM's guidance: the published strength, neighbours, closed forms, what zero strength leaves."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from components import Smooth, finite_set, images, net_denoiser
from lustral.classifiers.resnet import ResNet
from lustral.classifiers.small import SmallCNN
from lustral.classifiers.whitened import WhitenedResNet
from lustral.classifiers.wide import WideResNet
from lustral.core.errors import UserError
from lustral.core.kernel import purify
from lustral.core.noise import Key
from lustral.denoisers.base import Clipped
from lustral.purifiers.compose import repeat
from lustral.purifiers.diffusion import Diffusion
from lustral.purifiers.guided import Robust, Towards, closeness, ssim
from lustral.purifiers.presets import gdmp
from lustral.samplers import DDPM
from lustral.schedules import DiscreteVP

WIDE = partial(WideResNet, 10, 1, channels=1)
KEY, SCHEDULE = Key(8), DiscreteVP.linear()
PIXELS = 3 * 32 * 32


def published_coefficients(batch: int) -> list[float]:
    """What multiplies (guide − x_t) in the released code at t = 36, …, 1: Σ_t·scale(t)·2/(batch·pixels), Σ_t = β_t."""
    abar, found = 1.0, []
    for beta in SCHEDULE.betas[:36]:
        abar *= 1 - beta
        scale = math.sqrt(1 - abar) / (2 * 8 / 255 / (3 * 60_000) * math.sqrt(abar))
        found.append(beta * scale * 2 / (batch * PIXELS))
    return found[::-1]


@pytest.mark.parametrize(("batch", "wanted"), [(100, 0.026), (1, 2.61)])
def test_the_published_strength_depends_on_the_batch(batch, wanted):
    """0.026 for batches of 100 and 2.61 for single images, over 36 steps (section 7 of the specification)."""
    assert sum(published_coefficients(batch)) == pytest.approx(wanted, rel=0.01)


def test_guidance_is_that_of_the_published_code_for_batches_of_100():
    """The shift of every step, against the published coefficient; D + sigma²·∇ differs from it by √(1 − β) < 0.1 %."""
    x = images(2, (3, 32, 32), torch.float64)
    still = gdmp(finite_set((3, 32, 32), torch.float64), likeness=None, rounds=1).stages[0]
    drawn = gdmp(finite_set((3, 32, 32), torch.float64), rounds=1, noised=False).stages[0]
    rng = KEY.rng(2)
    state = drawn.begin(x, x, x, rng.fold("init"))
    for i, wanted in enumerate(published_coefficients(100)):
        t = torch.tensor([(36 - i) / 1000, (35 - i) / 1000], dtype=torch.float64)
        now, then = torch.exp(SCHEDULE.log_scale(t)).tolist()
        x_t = now * (2 * state.y - 1)
        moved = 2 * then * (drawn.step(i, state, rng).y - still.step(i, state, rng).y)
        torch.testing.assert_close(moved, wanted * (2 * x - 1 - x_t), rtol=2e-3, atol=1e-12)
        state = still.step(i, state, rng.fold(i))


@pytest.mark.parametrize("likeness", ["mse", "ssim"])
def test_without_strength_gdmp_is_ddpm(likeness):
    plain = repeat(Diffusion(Clipped(net_denoiser()), SCHEDULE, DDPM("large", steps=4), 0.036), 4)
    guided = gdmp(net_denoiser(), likeness=likeness, strength=0.0, steps=4)
    ablated = gdmp(net_denoiser(), likeness=None, steps=4)
    x = images(3)
    wanted = purify(plain, x, KEY.rng(3))
    assert torch.equal(purify(guided, x, KEY.rng(3)), wanted)
    assert torch.equal(purify(ablated, x, KEY.rng(3)), wanted)


@pytest.mark.parametrize("likeness", ["mse", "ssim"])
def test_guidance_is_the_same_alone_and_among_64(likeness):
    denoiser = finite_set(dtype=torch.float64)
    purifier = gdmp(denoiser, likeness=likeness, strength=10_000.0, steps=3, rounds=2)
    x, rng = images(64, dtype=torch.float64), KEY.rng(64)
    whole = purify(purifier, x, rng)
    assert (whole - purify(gdmp(denoiser, strength=0.0, steps=3, rounds=2), x, rng)).abs().max() > 0.01
    for row in (0, 17, 63):
        only = torch.tensor([row])
        torch.testing.assert_close(purify(purifier, x[only], rng[only]), whole[only], rtol=0, atol=1e-12)


def test_the_error_pulls_in_a_straight_line():
    y, x = images(3, dtype=torch.float64), images(3, dtype=torch.float64).flip(0)
    sigma = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)
    scale = torch.exp(SCHEDULE.log_scale(SCHEDULE.time(sigma)))[:, None, None, None]
    s = sigma[:, None, None, None]
    z = KEY.rng(3).normal(x)
    found = Towards(SCHEDULE, 7.0, closeness)(y, sigma, x, KEY.rng(3))
    torch.testing.assert_close(found, -7 * 2 * s * 2 * (2 * scale) ** 2 * (y - x - s * z) / 64)
    clear = Towards(SCHEDULE, 7.0, closeness, noised=False)(y, sigma, x, KEY.rng(3))
    torch.testing.assert_close(clear, -7 * 2 * s * 2 * 2 * scale * (scale * (2 * y - 1) - (2 * x - 1)) / 64)


def test_ssim_is_its_formula():
    """On 11×11 images the middle of the map sees the whole window."""
    x, y = images(2, (1, 11, 11), torch.float64)[:, None]
    a, b = x[0, 0], y[0, 0]
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-(offsets**2) / 4.5)
    weight = line[:, None] * line / line.sum() ** 2
    mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
    var_a, var_b = (weight * a * a).sum() - mean_a**2, (weight * b * b).sum() - mean_b**2
    both = (weight * a * b).sum() - mean_a * mean_b
    middle = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    middle = middle / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
    padded_a, padded_b = (nn.functional.pad(v, [5] * 4) for v in (x, y))
    whole = ssim(padded_a, padded_b)  # its map's middle is this window
    assert torch.equal(ssim(x, x), torch.ones(1, dtype=torch.float64))
    patch = _map(padded_a, padded_b)[0, 0, 10, 10]
    torch.testing.assert_close(patch, middle)
    assert whole.shape == (1,)


def _map(a, b):
    """SSIM's map of two images, recovered from the mean by its derivative with respect to nothing but position."""
    offsets = torch.arange(-5, 6, dtype=a.dtype)
    line = torch.exp(-(offsets**2) / 4.5)
    kernel = (line[:, None] * line / line.sum() ** 2)[None, None]
    mean = lambda v: nn.functional.conv2d(v, kernel, padding=5)  # noqa: E731
    m, n = mean(a), mean(b)
    va, vb, both = mean(a * a) - m * m, mean(b * b) - n * n, mean(a * b) - m * n
    return (2 * m * n + 1e-4) * (2 * both + 9e-4) / ((m * m + n * n + 1e-4) * (va + vb + 9e-4))


def test_a_robust_network_guides_to_its_verdict_on_the_input():
    x, y = images(4, dtype=torch.float64), images(4, dtype=torch.float64).flip(0).requires_grad_()
    net = Smooth()
    verdict = net.head(net.features(x)).argmax(dim=1)
    chosen = torch.log_softmax(net.head(net.features(y)), dim=1)[range(4), verdict].sum()
    distance = (net.features(y) - net.features(x)).square().sum()
    wanted = torch.autograd.grad(3 * chosen - 2 * distance, y)[0]
    found = Robust(net, 3.0, 2.0)(y, torch.full((4,), 0.1), x, KEY.rng(4))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("make", [SmallCNN, lambda: ResNet(1, 4), lambda: WhitenedResNet(1, 4), WIDE])
def test_classifiers_are_their_two_parts(make):
    torch.manual_seed(0)
    net, x = make().eval(), torch.rand(2, 1, 16, 16)
    assert torch.equal(net.head(net.features(x)), net(x))
    assert net.features(x).dim() == 2


def test_bad_guidance_is_refused():
    with pytest.raises(UserError, match="cannot be negative"):
        gdmp(net_denoiser(), strength=-1.0)
    with pytest.raises(UserError, match="Did you mean 'ssim'"):
        gdmp(net_denoiser(), likeness="sim")
