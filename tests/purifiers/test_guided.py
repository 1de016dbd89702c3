"""GDMP's and AGDM's guidance: the published strength, neighbours, closed forms, what zero strength leaves."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from components import Smooth, finite_set, gaussian_mixture, images, net_denoiser
from lustral.classifiers.resnet import ResNet
from lustral.classifiers.small import SmallCNN
from lustral.classifiers.whitened import WhitenedResNet
from lustral.classifiers.wide import WideResNet
from lustral.core.errors import UserError
from lustral.core.kernel import purify
from lustral.core.noise import Key, Rng
from lustral.denoisers.base import Clipped, Denoiser
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


def ssim_by_hand(x: Tensor, y: Tensor) -> Tensor:
    """SSIM [b] from its definition, a pixel at a time: Gaussian windows of 11×11 with spread 1.5 and zeros outside.

    Where images are smaller, windows have the largest odd side that fits.
    """
    height, width = x.shape[2:]
    r = min(11, height - (height % 2 == 0), width - (width % 2 == 0)) // 2
    line = [math.exp(-(k**2) / (2 * 1.5**2)) for k in range(-r, r + 1)]
    window = torch.tensor([[a * b for b in line] for a in line], dtype=x.dtype) / sum(line) ** 2
    values = []
    for i in range(height):
        for j in range(width):
            top, bottom, left, right = max(0, i - r), min(height, i + r + 1), max(0, j - r), min(width, j + r + 1)
            weight = window[top - i + r : bottom - i + r, left - j + r : right - j + r]
            a, b = x[:, :, top:bottom, left:right], y[:, :, top:bottom, left:right]
            mean_a, mean_b = (weight * a).sum((2, 3)), (weight * b).sum((2, 3))
            var_a, var_b = (weight * a * a).sum((2, 3)) - mean_a**2, (weight * b * b).sum((2, 3)) - mean_b**2
            both = (weight * a * b).sum((2, 3)) - mean_a * mean_b
            value = (2 * mean_a * mean_b + 0.01**2) * (2 * both + 0.03**2)
            values.append(value / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    return torch.stack(values).mean(dim=(0, 2))


@pytest.mark.parametrize("shape", [(3, 16, 13), (3, 8, 6), (1, 3, 20)], ids=str)
def test_ssim_is_its_definition(shape):
    """On colour images that are not square, and on images smaller than the window."""
    x = 2 * images(3, shape, torch.float64) - 1
    y = 2 * images(3, shape, torch.float64).flip(0, 3) - 1
    found = ssim(x, y)
    torch.testing.assert_close(found, ssim_by_hand(x, y), rtol=0, atol=1e-12)
    assert (found.abs() < 0.9).all()
    assert torch.equal(ssim(x, x), torch.ones(3, dtype=torch.float64))


def gdmp_by_hand(denoiser: Denoiser, x: Tensor, rng: Rng, kind: str, noised: bool, held: bool = False) -> Tensor:
    """Two rounds of two steps from ᾱ_60, guided as hard as published, from the equations on [-1, 1] (section 7).

    Guidance ∇ enters the estimate by Tweedie's formula, x̂₀ + (1 − ᾱ)/√ᾱ·∇; ``held``, it is taken as constant.
    """
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = [1.0, *(1 - betas).cumprod(0).tolist()]
    v = first = 2 * x - 1
    # Going over to the second round is step 2 of the whole.
    for begin, entry in ((0, rng.fold("init")), (3, rng.fold("step", 2))):
        v = math.sqrt(abar[60]) * v + math.sqrt(1 - abar[60]) * entry.normal(x)
        for i, t, s in ((begin, 60, 30), (begin + 1, 30, 0)):
            now, then, place = abar[t], abar[s], rng.fold("step", i)
            goal = math.sqrt(now) * first + math.sqrt(1 - now) * place.fold("guide").normal(x) if noised else first
            if kind == "mse":
                grad = -2 * (v - goal) / x[0].numel()
            else:
                (grad,) = torch.autograd.grad(ssim_by_hand(v, goal).sum(), v, create_graph=True)
            scale = {"mse": 60_000, "ssim": 1000}[kind] * 3 * 255 / (2 * 8) / 100 * math.sqrt((1 - now) / now)
            sigma = torch.full((len(x),), 0.5 * math.sqrt((1 - now) / now), dtype=x.dtype)
            clean = (2 * denoiser(0.5 + v / (2 * math.sqrt(now)), sigma) - 1).clamp(-1, 1)
            clean = clean + (1 - now) / math.sqrt(now) * scale * (grad.detach() if held else grad)
            beta = 1 - now / then
            v = math.sqrt(then) * beta / (1 - now) * clean + math.sqrt(1 - beta) * (1 - then) / (1 - now) * v
            if s > 0:
                v = v + math.sqrt(beta) * place.normal(x)
    return (v + 1) / 2


@pytest.mark.parametrize("noised", [True, False], ids=["noised", "clear"])
@pytest.mark.parametrize("kind", ["mse", "ssim"])
def test_gdmp_and_its_exact_gradient_equal_plain_autograd_on_its_equations(kind, noised):
    """Through the guide, the input that it compares with, and the derivative of the likeness."""
    denoiser, x = gaussian_mixture(dtype=torch.float64), images(3, dtype=torch.float64).requires_grad_()
    upstream = KEY.fold("upstream").rng(3).normal(x)
    found = purify(gdmp(denoiser, 0.06, rounds=2, steps=2, likeness=kind, noised=noised), x, KEY.rng(3))
    grad = torch.autograd.grad(found, x, upstream)[0].flatten(1)
    wanted = gdmp_by_hand(denoiser, x, KEY.rng(3), kind, noised)
    wanted_grad = torch.autograd.grad(wanted, x, upstream)[0].flatten(1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-9, atol=1e-9 * float(wanted_grad.abs().max()))
    assert (torch.cosine_similarity(grad, wanted_grad) > 1 - 1e-9).all()
    blind = torch.autograd.grad(gdmp_by_hand(denoiser, x, KEY.rng(3), kind, noised, held=True), x, upstream)[0]
    assert (torch.cosine_similarity(blind.flatten(1), wanted_grad) < 0.999).all()


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
