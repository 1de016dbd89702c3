"""Schedules against their definitions: inverses, derivatives, and the published table of equivalent noise levels."""

import math

import pytest
import torch

from lustral.core.errors import UserError
from lustral.schedules import EDM, VE, VP, DiscreteVP

CUSTOM = DiscreteVP((0.02, 0.3, 0.001, 0.5, 0.11, 0.9, 0.04))
SCHEDULES = {
    "vp": VP(),
    "linear": DiscreteVP.linear(),
    "cosine": DiscreteVP.cosine(),
    "custom": CUSTOM,
    "ve": VE(),
    "edm": EDM(),
}
DISCRETE = {"linear": SCHEDULES["linear"], "cosine": SCHEDULES["cosine"], "custom": CUSTOM}

schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
discrete = pytest.mark.parametrize("schedule", DISCRETE.values(), ids=DISCRETE.keys())


def inner_times(schedule, n=997):
    """Times inside (0, t_max); n is prime, so that they fall on no grid point k/N of the schedules above."""
    return schedule.t_max * torch.arange(1, n, dtype=torch.float64) / n


def derivative(function, t):
    t = t.clone().requires_grad_()
    value = function(t)
    return torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)


@schedules
def test_time_inverts_sigma_and_sigma_inverts_time(schedule):
    t = torch.cat([inner_times(schedule), torch.tensor([1e-5, schedule.t_max], dtype=torch.float64)])
    sigma = schedule.sigma(t)
    torch.testing.assert_close(schedule.time(sigma), t, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(schedule.sigma(schedule.time(sigma)), sigma, rtol=1e-11, atol=0)


@schedules
def test_sigma_grows_and_scale_does_not(schedule):
    t = inner_times(schedule)
    assert (schedule.sigma(t).diff() > 0).all()
    assert (schedule.log_scale(t).diff() <= 0).all()
    assert (schedule.log_scale(t) <= 0).all()


@schedules
def test_rate_is_the_decay_of_the_scale(schedule):
    """E[x_t | x₀] = s(t)·x₀ solves x' = −½·rate·x."""
    t = inner_times(schedule)
    torch.testing.assert_close(schedule.rate(t), -2 * derivative(schedule.log_scale, t), rtol=1e-10, atol=0)


@schedules
def test_diffusion_is_the_growth_of_the_noise(schedule):
    """Var[x_t | x₀] = s²·4·sigma² solves v' = diffusion − rate·v, so diffusion = s²·d(4·sigma²)/dt."""
    t = inner_times(schedule)
    growth = torch.exp(2 * schedule.log_scale(t)) * derivative(lambda u: 4 * schedule.sigma(u) ** 2, t)
    torch.testing.assert_close(schedule.diffusion(t), growth, rtol=1e-9, atol=0)


@schedules
def test_sigma_has_the_slope_that_finite_differences_see(schedule):
    """The same without autograd. A central difference errs by h²·f'''/6 and rounding by ulp(f)/h."""
    t = inner_times(schedule, 101)
    h = 1e-6 * schedule.t_max
    slope = (schedule.sigma(t + h) - schedule.sigma(t - h)) / (2 * h)
    torch.testing.assert_close(derivative(schedule.sigma, t), slope, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["vp", "linear", "cosine", "custom"])
def test_variance_preserving_means_unit_total_variance(name):
    """s² + s²·4·sigma² = 1."""
    t = inner_times(SCHEDULES[name])
    alpha_bar = torch.exp(2 * SCHEDULES[name].log_scale(t))
    torch.testing.assert_close(alpha_bar * (1 + 4 * SCHEDULES[name].sigma(t) ** 2), torch.ones_like(t))


def test_continuous_vp_follows_its_formula():
    t = inner_times(VP())
    torch.testing.assert_close(torch.exp(2 * VP().log_scale(t)), torch.exp(-0.5 * 19.9 * t**2 - 0.1 * t))


@discrete
def test_alpha_bar_at_n_over_N_is_the_plain_product(schedule):
    n = len(schedule.betas)
    product, expected = 1.0, [1.0]
    for beta in schedule.betas:
        product *= 1 - beta
        expected.append(product)
    t = torch.arange(n + 1, dtype=torch.float64) / n
    alpha_bar = torch.exp(2 * schedule.log_scale(t))
    torch.testing.assert_close(alpha_bar, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)


@discrete
def test_rate_at_n_over_N_is_that_of_the_step_that_ends_there(schedule):
    n = len(schedule.betas)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    expected = torch.tensor([-n * math.log1p(-b) for b in schedule.betas], dtype=torch.float64)
    torch.testing.assert_close(schedule.rate(t), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(-2 * derivative(schedule.log_scale, t), expected, rtol=1e-9, atol=0)


def test_linear_betas():
    betas = DiscreteVP.linear(1e-3, 0.05, 50).betas
    assert betas == pytest.approx([1e-3 + (0.05 - 1e-3) * i / 49 for i in range(50)], rel=1e-12)


def test_cosine_betas_give_the_squared_cosine_until_they_are_cut():
    schedule = DiscreteVP.cosine(100, s=0.01, largest=0.5)
    alpha_bar = torch.tensor(schedule.betas, dtype=torch.float64).neg().add(1).cumprod(0)
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    target = torch.cos((t + 0.01) / 1.01 * math.pi / 2) ** 2 / math.cos(0.01 / 1.01 * math.pi / 2) ** 2
    free = torch.tensor([b < 0.5 for b in schedule.betas])
    assert free[:90].all()
    assert not free[-1]
    torch.testing.assert_close(alpha_bar[free], target[free])
    assert max(schedule.betas) == 0.5


# Nie et al. (2022) use t* = 75 … 500 of 1000: (t, discrete ᾱ, continuous ᾱ, sigma of the discrete one on [0, 1]).
PUBLISHED = [
    (75, 0.9391, 0.9385, 0.127),
    (100, 0.8970, 0.8963, 0.169),
    (125, 0.8462, 0.8454, 0.213),
    (150, 0.7883, 0.7875, 0.259),
    (500, 0.0786, 0.0791, 1.71),
]


@pytest.mark.parametrize(("t", "discrete", "continuous", "sigma"), PUBLISHED)
def test_published_noise_levels_within_their_rounding(t, discrete, continuous, sigma):
    time = torch.tensor(t / 1000, dtype=torch.float64)
    linear = DiscreteVP.linear()
    assert math.exp(2 * linear.log_scale(time)) == pytest.approx(discrete, abs=0.5e-4)
    assert math.exp(2 * VP().log_scale(time)) == pytest.approx(continuous, abs=0.5e-4)
    assert float(linear.sigma(time)) == pytest.approx(sigma, abs=0.5e-2 if sigma > 1 else 0.5e-3)


@schedules
def test_gradients_in_time_are_finite_down_to_zero(schedule):
    n = len(schedule.betas) if isinstance(schedule, DiscreteVP) else 10
    grid = torch.arange(n + 1, dtype=torch.float64) / n * schedule.t_max
    t = torch.cat([torch.tensor([1e-30, 1e-12, 1e-9, 1e-6], dtype=torch.float64), grid])
    for function in (schedule.sigma, schedule.log_scale, schedule.rate, schedule.diffusion):
        assert function(t).isfinite().all()
        assert derivative(function, t).isfinite().all()


@schedules
def test_time_is_differentiable(schedule):
    sigma = schedule.sigma(inner_times(schedule, 11)).requires_grad_()
    assert torch.autograd.gradcheck(schedule.time, sigma, eps=1e-7)


@schedules
def test_shape_is_free(schedule):
    t = inner_times(schedule, 7).view(2, 3)
    for function in (schedule.sigma, schedule.log_scale, schedule.rate, schedule.diffusion, schedule.time):
        assert torch.equal(function(t), function(t.flatten()).view(2, 3))


@pytest.mark.parametrize("betas", [(), (0.0,), (0.1, 1.0), (-0.1, 0.2), (0.1, float("nan"))])
def test_betas_outside_the_unit_interval_are_refused(betas):
    with pytest.raises(UserError, match="strictly between 0 and 1"):
        DiscreteVP(betas)
