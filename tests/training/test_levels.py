"""Levels of noise: their quantiles in closed form."""

import math

import pytest
import torch
from scipy import stats

from lustral.core.noise import Key
from lustral.schedules import VE, VP, DiscreteVP
from lustral.training.denoising import Denoising
from lustral.training.levels import Geometric, LogNormal, LogUniform, Times

GRID = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
EVERY = [
    LogUniform(0.005, 0.5),
    Geometric(0.01, 1.0, 7),
    LogNormal(),
    LogNormal(sigma_max=0.2),
    Times(),
    Times(t_max=0.3),
    Times(DiscreteVP.linear(), 1e-3, 1.0),
    Times(VE(), 0.0, 1.0),
]


def quantiles(levels) -> torch.Tensor:
    """sigma at the quantiles ``GRID``, whether it rises or falls in u."""
    return levels(GRID).sort().values


def test_log_uniform():
    expected = torch.from_numpy(stats.loguniform.ppf(GRID.numpy(), 0.005, 0.5))
    torch.testing.assert_close(quantiles(LogUniform(0.005, 0.5)), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("n", [1, 2, 10, 32])
def test_geometric_is_the_ladder_with_both_ends_and_equal_shares(n):
    u = (torch.arange(50 * n, dtype=torch.float64) + 0.5) / (50 * n)
    sigma = Geometric(0.01, 2.0, n)(u)
    rungs, counts = sigma.unique(return_counts=True)
    expected = torch.logspace(math.log10(0.01), math.log10(2.0), n, dtype=torch.float64) if n > 1 else None
    assert counts.tolist() == [50] * n
    if n > 1:
        torch.testing.assert_close(rungs, expected, rtol=1e-9, atol=0)
    last = torch.tensor([0.0, 1 - 2**-24])
    assert set(Geometric(0.01, 2.0, n)(last).tolist()) <= set(Geometric(0.01, 2.0, n)(u.float()).tolist())


@pytest.mark.parametrize("sigma_max", [0.05, 0.2, 1.0, 40.0])
def test_log_normal_is_a_truncated_normal(sigma_max):
    """ln(2·sigma) is normal with −1.2 and 1.2, given that sigma is at most sigma_max."""
    edge = (math.log(2 * sigma_max) + 1.2) / 1.2
    expected = stats.truncnorm.ppf(GRID.numpy(), -math.inf, edge, loc=-1.2, scale=1.2)
    found = torch.log(2 * quantiles(LogNormal(sigma_max=sigma_max)))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma_max", [0.05, 0.2, 1.0, 10.0, 20.0, 40.0, 80.0, 1000.0])
def test_log_normal_never_exceeds_its_end(sigma_max, dtype):
    """At u = 0 and at the largest number below 1 too, where a float32 distribution function is coarse."""
    ends = torch.cat([torch.tensor([0.0, 2**-24]), 1 - 2.0**-24 * torch.arange(1, 400)]).to(dtype)
    sigma = LogNormal(sigma_max=sigma_max)(ends)
    assert torch.isfinite(sigma).all()
    assert float(sigma.min()) > 0
    assert float(sigma.double().max()) <= sigma_max * (1 + 1e-6)


def test_the_stated_lower_bound_of_log_normal_is_exceeded_by_all_but_one_in_30_000():
    levels = LogNormal()
    share = stats.norm.cdf((math.log(2 * levels.sigma_min) + 1.2) / 1.2)
    assert 1 / 40_000 < share <= 1 / 30_000


@pytest.mark.parametrize("schedule", [VP(), VE(), DiscreteVP.linear()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("t_max", [1.0, 0.3])
def test_times_are_uniform_on_the_schedule(schedule, t_max):
    levels = Times(schedule, 0.01, t_max)
    expected = schedule.sigma(torch.from_numpy(stats.uniform.ppf(GRID.numpy(), 0.01, t_max - 0.01)))
    torch.testing.assert_close(quantiles(levels), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(schedule.time(quantiles(levels)), 0.01 + (t_max - 0.01) * GRID, rtol=0, atol=1e-7)


def test_truncated_times_of_vp_in_closed_form():
    """4·sigma² + 1 = 1/ᾱ with ᾱ(0.3) = exp(−½·19.9·0.3² − 0.1·0.3)."""
    end = 0.5 * math.sqrt(math.exp(0.5 * 19.9 * 0.09 + 0.03) - 1)
    assert Times(t_max=0.3).sigma_max == pytest.approx(end, rel=1e-12)
    assert float(Times(t_max=0.3)(GRID).max()) <= end


@pytest.mark.parametrize("levels", EVERY, ids=lambda levels: type(levels).__name__)
def test_levels_lie_between_their_limits_and_are_met_as_often_as_stated(levels):
    """What objectives draw from addressed noise, against the quantiles (Kolmogorov and Smirnov)."""
    n = 4000
    sigma = Denoising(levels).sigma(torch.empty(n, 1, 1, 1), Key(7).rng(n)).double()
    assert float(sigma.max()) <= levels.sigma_max * (1 + 1e-5)
    below = float((sigma < levels.sigma_min * (1 - 1e-5)).double().mean())
    assert below <= (1e-3 if isinstance(levels, LogNormal) else 0)
    expected = quantiles(levels)
    if not isinstance(levels, Geometric):
        assert stats.ks_2samp(sigma.numpy(), expected.numpy()).pvalue > 1e-3
    else:
        counts = torch.stack([(sigma / rung - 1).abs().lt(1e-4).sum() for rung in expected.unique()])
        assert int(counts.sum()) == n
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
