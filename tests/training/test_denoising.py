"""One denoising loss: every published one is it with another weight, in the variables of its own paper."""

import pytest
import torch
from torch import Tensor, nn

from lustral.core.errors import UserError
from lustral.core.noise import Key, Rng
from lustral.denoisers import base
from lustral.schedules import VE, VP, DiscreteVP
from lustral.training.denoising import Denoising
from lustral.training.levels import Geometric, LogNormal, LogUniform, Times

N, SHAPE = 9, (2, 3, 4)
X = Key(1).rng(N).uniform(torch.empty(N, *SHAPE, dtype=torch.float64))
Y = torch.zeros(N, dtype=torch.long)


def toy(x: Tensor, sigma: Tensor) -> Tensor:
    """An arbitrary denoiser: not linear, mixes channels, depends on sigma."""
    s = base.column(sigma, x)
    return x / (1 + 3 * s) + 0.2 * torch.sin(5 * x.flip(1) + s) + 0.1


def rng() -> Rng:
    return Key(2).rng(N)


def drawn(levels) -> tuple[Tensor, Tensor]:
    """The sigma and z that the objective must have met."""
    return levels(rng().fold("level").uniform(X[:, 0, 0, 0])), rng().fold("noise").normal(X)


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def mean(square: Tensor) -> Tensor:
    return square.reshape(N, -1).sum(1) / square[0].numel()


def close(a: Tensor, b: Tensor) -> None:
    assert a.shape == (N,)
    assert a.dtype == torch.float64
    assert float((a / b - 1).abs().max()) < 1e-9


@pytest.mark.parametrize("levels", [LogUniform(), Times(VP()), Geometric()], ids=lambda levels: type(levels).__name__)
def test_noise_weighting_is_the_error_of_the_predicted_noise(levels):
    sigma, z = drawn(levels)
    eps = base.noise(toy, X + column(sigma) * z, sigma)
    close(Denoising(levels, "noise")(toy, X, Y, rng()), mean((eps - z) ** 2))


@pytest.mark.parametrize("schedule", [VP(), DiscreteVP.linear(n=50)], ids=["vp", "ddpm"])
def test_noise_weighting_is_ddpms_simple_loss_on_its_own_scale(schedule):
    """|ε_θ(√ᾱ·x₀ + √(1−ᾱ)·z, t) − z|² with x₀ on [-1, 1] (Ho et al., eq. 14), t continuous."""
    levels = Times(schedule)
    sigma, z = drawn(levels)
    t = schedule.time(sigma)
    a = column(torch.exp(2 * schedule.log_scale(t)))
    x_t = a.sqrt() * (2 * X - 1) + (1 - a).sqrt() * z
    eps = base.eps_network(toy, schedule)(x_t, t)
    found = Denoising(levels, "noise")(toy, X, Y, rng())
    assert torch.allclose(found, mean((eps - z) ** 2), rtol=1e-6)  # t comes from sigma and back


@pytest.mark.parametrize("levels", [Times(VP()), Times(VP(), t_max=0.3)], ids=["whole", "truncated"])
def test_v_weighting_is_the_error_of_the_predicted_v(levels):
    """v = √ᾱ·z − √(1−ᾱ)·x₀ on [-1, 1], at the times that were drawn."""
    _, z = drawn(levels)
    t = levels.t_min + (levels.t_max - levels.t_min) * rng().fold("level").uniform(X[:, 0, 0, 0])
    a = column(torch.exp(-0.5 * 19.9 * t**2 - 0.1 * t))
    x0 = 2 * X - 1
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * z
    v = base.v_network(toy, VP())(x_t, t)
    close(Denoising(levels, "v")(toy, X, Y, rng()), mean((v - (a.sqrt() * z - (1 - a).sqrt() * x0)) ** 2))


@pytest.mark.parametrize("sigma_data", [0.1, 0.25, 0.4])
def test_edm_weighting_is_the_error_of_the_raw_network(sigma_data):
    """|F − (x₀ − c_skip·v)/c_out|² on [-1, 1]: Karras et al., eq. 8 with the weight that makes it 1/c_out²."""
    levels = LogNormal()
    sigma, z = drawn(levels)
    s, d = column(2 * sigma), 2 * sigma_data
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / torch.sqrt(s**2 + d**2)
    x0, noisy = 2 * X - 1, X + column(sigma) * z
    v = 2 * noisy - 1
    raw = (2 * toy(noisy, sigma) - 1 - c_skip * v) / c_out
    target = (x0 - c_skip * v) / c_out
    close(Denoising(levels, "edm", sigma_data)(toy, X, Y, rng()), mean((raw - target) ** 2))


def test_edm_targets_have_unit_variance_for_data_of_the_stated_spread():
    """Which is what its weight is for: a network that answers 0 costs 1 at every level."""
    n = 4000
    x = 0.5 + 0.2 * Key(3).rng(n).normal(torch.empty(n, 1, 4, 4, dtype=torch.float64))

    def lazy(noisy: Tensor, sigma: Tensor) -> Tensor:
        gain = base.column(0.2**2 / (0.2**2 + sigma**2), noisy)
        return 0.5 + gain * (noisy - 0.5)

    for sigma in (0.02, 0.2, 2.0):
        objective = Denoising(LogUniform(sigma, sigma), "edm", sigma_data=0.2)
        assert float(objective(lazy, x, torch.zeros(n), Key(4).rng(n)).mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("levels", [Geometric(), Times(VE())], ids=["ladder", "continuous"])
def test_denoising_score_matching_with_lambda_sigma_squared_is_noise_weighting(levels):
    """sigma²·|score + z/sigma|², the target being the score (x − x')/sigma² of the noise; in [0, 1] units."""
    sigma, z = drawn(levels)
    s, noisy = column(sigma), X + column(sigma) * z
    score = base.score(toy, noisy, sigma)
    expected = mean(s**2 * (score - (X - noisy) / s**2) ** 2)
    close(Denoising(levels, "noise")(toy, X, Y, rng()), expected)


@pytest.mark.parametrize("weighting", ["noise", "edm", "v"])
def test_a_perfect_denoiser_costs_nothing_and_images_are_independent(weighting):
    objective = Denoising(LogUniform(), weighting)
    assert float(objective(lambda noisy, sigma: X, X, Y, rng()).abs().max()) == 0
    whole = objective(toy, X, Y, rng())
    for i in (0, 4, 8):
        alone = objective(toy, X[i : i + 1], Y[i : i + 1], rng()[i : i + 1])
        assert torch.allclose(alone[0], whole[i], rtol=1e-12)
    assert len(whole.unique()) == N


def test_the_gradient_reaches_the_network():
    net = nn.Conv2d(2, 2, 1).double()
    Denoising()(lambda x, sigma: net(x), X, Y, rng()).sum().backward()
    assert float(net.weight.grad.abs().min()) > 0


def test_an_unknown_weighting_is_said():
    with pytest.raises(UserError, match="Unknown weighting 'ncsn'"):
        Denoising(weighting="ncsn")
