"""Samplers on data whose exact denoiser is known, so that the law of their output is known too.

For one Gaussian component N(MU, V) the denoiser is affine, so every row of a table is affine in (y, register) and the
output law follows an exact recursion of means and covariances. For a mixture of two, laws on the line are pushed
through the rows by quadrature. Both are compared with what the kernel does to many samples, and with what the theory
of the reverse process says they must converge to.
"""

import math
from itertools import pairwise

import pytest
import torch

from lustral.core.kernel import purify
from lustral.core.noise import Key
from lustral.denoisers.ideal import GaussianMixture
from lustral.purifiers.diffusion import Diffusion
from lustral.samplers import DDIM, DDPM, ODE, SDE, Heun, Langevin, OneShot
from lustral.schedules import EDM, VE, VP, DiscreteVP

MU, V = 0.7, 0.04


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def one(*shape):
    """Independent pixels N(MU, V) in images of a shape."""
    return GaussianMixture(torch.full((1, *shape), MU, dtype=torch.float64), f64(V))


def table_of(sampler, schedule, t_star):
    return sampler.table(schedule, f64(t_star), sampler.n_steps(schedule, t_star))


def rows_of(table):
    return list(zip(*(column[0].tolist() for column in table[:7]), strict=True))


# ---------------------------------------------------------------------------------------------- one Gaussian component


def evolve(table, mean, cov):
    """The law of the output in [0, 1] when (y, register) starts as N(mean, cov), both about ½: an affine recursion."""
    for sigma, a, b, c, pull, keep, keep_d in rows_of(table):
        gain = V / (V + sigma**2)
        rest = (1 - gain) * (MU - 0.5)  # D − ½ = gain·(y − ½) + rest
        written = keep != 0
        move = f64(a + b * gain, pull, keep + keep_d * gain, 1.0 - written).view(2, 2)
        mean = move @ mean + f64(b * rest, keep_d * rest)
        cov = move @ cov @ move.T + torch.diag(f64(c**2, 0.0))
    scale = float(table.scale_out)
    return 0.5 + scale * float(mean[0]), scale**2 * float(cov[0, 0])


def evolve_image(table, x):
    """The output law for the input pixel x."""
    start = f64(float(table.scale_in) * (x - 0.5), x - 0.5)
    return evolve(table, start, torch.diag(f64(float(table.sigma_in) ** 2, 0.0)))


def evolve_law(table, mean, variance):
    """The output law when y at t* is N(mean, variance)."""
    return evolve(table, f64(mean - 0.5, 0.0), torch.diag(f64(variance, 0.0)))


KERNEL_CASES = {
    "ddpm-vp": (DDPM(steps=10), VP(), 0.3),
    "ddpm-large-vp": (DDPM("large", steps=10), VP(), 0.3),
    "ddpm-discrete-own-steps": (DDPM(), DiscreteVP.linear(n=50), 0.4),
    "ddpm-cosine-between-steps": (DDPM(), DiscreteVP.cosine(50), 0.3137),
    "ddpm-edm": (DDPM(steps=10), EDM(), 0.5),
    "ddpm-ve": (DDPM("large", dt=0.02), VE(), 0.4),
    "ddim-0": (DDIM(0.0, steps=10), VP(), 0.3),
    "ddim-half": (DDIM(0.5, steps=10), DiscreteVP.linear(), 0.3),
    "sde-vp": (SDE(dt=0.01), VP(), 0.1),
    "sde-vp-between-steps": (SDE(dt=0.01), VP(), 0.0537),
    "sde-vp-early-end": (SDE(dt=0.02, end=0.15), VP(), 0.3),
    "sde-ve": (SDE(steps=20), VE(), 0.4),
    "sde-mean": (SDE(dt=0.03, mean=True), VP(), 0.1),
    "ode-vp": (ODE(dt=0.01), VP(), 0.1),
    "ode-vp-early-end": (ODE(dt=0.02, end=0.15), VP(), 0.3),
    "ode-edm": (ODE(steps=8), EDM(), 0.5),
    "heun": (Heun(steps=5), VP(), 0.3),
    "langevin": (Langevin(), VP(), 0.1),
    "one-shot": (OneShot(), VP(), 0.3),
}


@pytest.mark.parametrize(("sampler", "schedule", "t_star"), KERNEL_CASES.values(), ids=KERNEL_CASES.keys())
def test_kernel_has_the_moments_of_its_table(sampler, schedule, t_star):
    """1e5 pixels of 1000 rows. The output is Gaussian: standard errors are √(v/n) and v·√(2/n)."""
    x = torch.full((1000, 1, 10, 10), 0.9, dtype=torch.float64)
    out = purify(Diffusion(one(1, 10, 10), schedule, sampler, t_star), x, Key(1)).flatten()
    mean, variance = evolve_image(table_of(sampler, schedule, t_star), 0.9)
    n = len(out)
    assert abs(float(out.mean()) - mean) < 5 * math.sqrt(variance / n)
    assert abs(float(out.var()) - variance) < 5 * variance * math.sqrt(2 / n)


def limit_law(schedule, sampler, t_star, mean, variance, deterministic):
    """The exact reverse process from N(mean, variance) at t* to the sampler's last time, scaled back to the image.

    Stochastic: y_s | y_t of the diffused Gaussian, whose regression on y_t has slope k = (V + σ_s²)/(V + σ_t²).
    Deterministic: the flow y ↦ MU + √k·(y − MU), which transports the marginals.
    """
    end = f64(getattr(sampler, "end", 0.0))
    top, low = float(schedule.sigma(f64(t_star))), float(schedule.sigma(end))
    scale = math.exp(float(schedule.log_scale(end)))
    k = (V + low**2) / (V + top**2)
    slope, fresh = (math.sqrt(k), 0.0) if deterministic else (k, (V + low**2) * (1 - k))
    return 0.5 + scale * (MU + slope * (mean - MU) - 0.5), scale**2 * (slope**2 * variance + fresh)


def assert_converges(values, target, powers, scale):
    """Richardson: extrapolated step-doublings approach the target by ever smaller moves.

    With an error C₁hᵖ¹ + C₂hᵖ² + …, eliminating the terms ``powers`` leaves a next term hᵠ whose error is at most
    1/(2^q − 1) ≤ ½ of the last move for q ≥ 1.6; a wrong limit or a lower order leaves more than one whole move.
    """
    for p in powers:
        values = [(2**p * fine - coarse) / (2**p - 1) for coarse, fine in pairwise(values)]
    move = abs(values[-1] - values[-2])
    assert move < 1e-3 * scale, "the grids are too coarse to say anything"
    assert abs(values[-1] - target) <= 0.6 * move + 1e-12 * scale


# The order of the error: [1] is h, [2] is h², and [1, 1] is h·log(1/h) + h, which two extrapolations remove. The
# logarithm belongs to small-variance steps of equal length in VP time: their noise is short by the share 1/k, k steps
# from the end.
CONVERGENCE = {
    "ddpm-small-edm": (lambda n: DDPM(steps=n), EDM(), [1], "stochastic"),
    "ddpm-large-edm": (lambda n: DDPM("large", steps=n), EDM(), [1], "stochastic"),
    "ddpm-small-vp": (lambda n: DDPM(steps=n), VP(), [1, 1], "stochastic"),
    "ddpm-large-vp": (lambda n: DDPM("large", steps=n), VP(), [1], "stochastic"),
    "ddpm-small-ve": (lambda n: DDPM(steps=n), VE(), [1], "stochastic"),
    "ddim-1-edm": (lambda n: DDIM(1.0, steps=n), EDM(), [1], "stochastic"),
    "ddim-half-edm": (lambda n: DDIM(0.5, steps=n), EDM(), [1], "marginal"),
    "ddim-0-edm": (lambda n: DDIM(0.0, steps=n), EDM(), [1], "deterministic"),
    "sde-vp": (lambda n: SDE(steps=n), VP(), [1], "stochastic"),
    "sde-vp-early-end": (lambda n: SDE(steps=n, end=0.2), VP(), [1], "stochastic"),
    "sde-mean": (lambda n: SDE(steps=n, mean=True), VP(), [1], "stochastic"),
    "sde-edm": (lambda n: SDE(steps=n), EDM(), [1], "stochastic"),
    "sde-ve": (lambda n: SDE(steps=n), VE(), [1], "stochastic"),
    "ode-vp": (lambda n: ODE(steps=n), VP(), [1], "deterministic"),
    "ode-vp-early-end": (lambda n: ODE(steps=n, end=0.2), VP(), [1], "deterministic"),
    "ode-edm": (lambda n: ODE(steps=n), EDM(), [1], "deterministic"),
    "ode-ve": (lambda n: ODE(steps=n), VE(), [1], "deterministic"),
}


@pytest.mark.parametrize(("make", "schedule", "powers", "kind"), CONVERGENCE.values(), ids=CONVERGENCE.keys())
def test_converges_to_the_reverse_process_at_its_order(make, schedule, powers, kind):
    """From the marginal at t* the limit is the data law; from one y it is the posterior (or the flow's image of y)."""
    t_star = 0.5
    marginal = (MU, V + float(schedule.sigma(f64(t_star))) ** 2)
    for start in [marginal] if kind == "marginal" else [marginal, (0.9, 0.0), (0.2, 0.01)]:
        target = limit_law(schedule, make(1), t_star, *start, kind == "deterministic")
        laws = [evolve_law(table_of(make(n), schedule, t_star), *start) for n in (128, 256, 512, 1024)]
        for values, limit in zip(zip(*laws, strict=True), target, strict=True):
            assert_converges(values, limit, powers, scale=abs(limit) + V)


def test_marginal_of_the_limit_law_is_the_data_law():
    """The theory above agrees with itself: reversing the exact marginal gives N(MU, V) back, either way."""
    marginal = (MU, V + float(VP().sigma(f64(0.5))) ** 2)
    for deterministic in (False, True):
        assert limit_law(VP(), DDPM(), 0.5, *marginal, deterministic) == pytest.approx((MU, V))


def test_heun_has_order_two():
    """The last step, from sigma_min to the denoiser's estimate, is exact knowledge here and not part of the order."""
    low, top = 0.002, float(VP().sigma(f64(0.5)))
    flow = math.sqrt((V + low**2) / (V + top**2)) * V / (V + low**2)
    laws = [evolve_law(table_of(Heun(n, sigma_min=low), VP(), 0.5), 0.9, 0.01) for n in (129, 257, 513, 1025)]
    for values, limit in zip(zip(*laws, strict=True), (MU + flow * (0.9 - MU), flow**2 * 0.01), strict=True):
        assert_converges(values, limit, [2], scale=limit)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("schedule", [VP(), DiscreteVP.linear(), EDM()], ids=["vp", "discrete", "edm"])
def test_ancestral_mean_is_the_posterior_mean_at_any_number_of_steps(variance, schedule):
    """a + b·gain telescopes: the mean of DDPM's output from y is D(y, sigma*) however coarse the grid."""
    for n in (1, 2, 7):
        table = table_of(DDPM(variance, steps=n), schedule, 0.437)
        gain = V / (V + float(table.sigma_in) ** 2)
        assert evolve_law(table, 0.9, 0.0)[0] == pytest.approx(MU + gain * (0.9 - MU), abs=1e-13)


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(0.0), DDIM(0.5), DDIM(1.0)], ids=str)
@pytest.mark.parametrize("schedule", [DiscreteVP.linear(n=40), DiscreteVP.cosine(40)], ids=["linear", "cosine"])
@pytest.mark.parametrize("t_star", [0.5, 0.4321, 0.0103], ids=["on-grid", "between", "within-the-first-step"])
def test_a_point_of_data_keeps_the_exact_marginal_of_every_level(sampler, schedule, t_star):
    """With D = p known, the posterior steps are exact: a²·sigma_t² + c² = sigma_s² on any grid, to sigma = 0."""
    table = table_of(sampler, schedule, t_star)
    after = table.a**2 * table.sigma**2 + table.c**2
    below = torch.cat([table.sigma[:, 1:], torch.zeros(1, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(after, below**2, rtol=1e-9, atol=1e-18)
    torch.testing.assert_close(table.a + table.b, torch.ones_like(table.a))


def test_one_shot_is_the_posterior_mean():
    x = torch.linspace(0, 1, 30, dtype=torch.float64).view(5, 1, 2, 3)
    rng = Key(3).rng(5)
    sigma = VP().sigma(f64(0.2))
    y = x + sigma * rng.fold("init").normal(x)
    expected = (V * y + sigma**2 * MU) / (V + sigma**2)
    out = purify(Diffusion(one(1, 2, 3), VP(), OneShot(), 0.2), x, rng)
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=0)


def test_langevin_settles_at_its_closed_form():
    """On [-1, 1]: x ← x − ½λh·(x − s·m)/v_t − ½λh·(x − x_in)/spread + η√(λh)·z, autoregressive of first order."""
    sampler, x_in, m = Langevin(lam=0.2, spread=2e-3, eta=0.3, level=0.01, dt=0.01), 0.9, 2 * MU - 1
    s2 = math.exp(-0.5 * 19.9 * 0.01**2 - 0.1 * 0.01)
    v_t = s2 * 4 * V + 1 - s2
    half = 0.5 * 0.2 * 0.01
    pull, spring = half / v_t, half / 2e-3
    mean = (pull * math.sqrt(s2) * m + spring * (2 * x_in - 1)) / (pull + spring)
    variance = 0.3**2 * 0.2 * 0.01 / (1 - (1 - pull - spring) ** 2)
    assert (1 - pull - spring) ** 100 < 1e-15, "100 steps must forget the start"
    assert evolve_image(table_of(sampler, VP(), 1.0), x_in) == pytest.approx(((mean + 1) / 2, variance / 4), rel=1e-12)


# ------------------------------------------------------------------------------------------------- two on the line

MEANS, VARIANCES, WEIGHTS = f64(0.25, 0.7), f64(0.004, 0.012), f64(0.35, 0.65)
TWO = GaussianMixture(MEANS.view(2, 1, 1, 1), VARIANCES, WEIGHTS)
START = 0.15
SIGMA2 = VP().sigma(f64(START)).square()


def line(n):
    """At least 6 sigma of everything below on either side."""
    return torch.linspace(-1.3, 2.2, n, dtype=torch.float64)


def normal(x, mean, variance):
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / torch.sqrt(2 * math.pi * variance)


def posterior(y, variance):
    """Weights [n, 2], means and variances of x₀ | y = x₀ + noise of the given variance, component by component."""
    joint = WEIGHTS * normal(y[:, None], MEANS, VARIANCES + variance)
    gain = VARIANCES / (VARIANCES + variance)
    return joint / joint.sum(1, keepdim=True), MEANS + gain * (y[:, None] - MEANS), gain * variance


def push(table, density):
    """The output law (points and weights) when y at t* has a density: the trapezoidal rule, row by row.

    A row with noise has a smooth kernel, which 501 points integrate to rounding (their distance is below its c).
    Without noise points just move, and many are needed where the flow tears the two modes apart.
    """
    points = line(501 if bool((table.c > 0).any()) else 20_001)
    weights = density(points) / density(points).sum()
    register = points
    for sigma, a, b, c, pull, keep, keep_d in rows_of(table):
        share, mean, _ = posterior(points, f64(sigma**2))
        d = (share * mean).sum(1)
        moved = 0.5 + a * (points - 0.5) + b * (d - 0.5) + pull * (register - 0.5)
        register = keep * points + keep_d * d if keep else register
        if c == 0:
            points = moved
        else:
            grid = line(501)
            weights = normal(grid[:, None], moved, f64(c**2)) @ weights
            points, weights = grid, weights / weights.sum()
    return 0.5 + float(table.scale_out) * (points - 0.5), weights


def statistics(points, weights):
    """Mean, variance and share of the first component, and the standard deviation of one sample's estimate of each."""
    share = posterior(points, f64(0.0))[0][:, 0]
    mean, first = (weights * points).sum(), (weights * share).sum()
    square = (points - mean) ** 2
    variance = (weights * square).sum()
    spreads = [variance, (weights * (square - variance) ** 2).sum(), (weights * (share - first) ** 2).sum()]
    return torch.stack([mean, variance, first]), torch.stack(spreads).sqrt()


def marginal(y):
    """The density of data diffused to START."""
    return (WEIGHTS * normal(y[:, None], MEANS, VARIANCES + SIGMA2)).sum(1)


def between(y):
    """The density of one image, between the modes, diffused to START."""
    return normal(y, 0.45, SIGMA2)


def assert_within_a_step_doubling(make, density, target):
    """At order h the finer grid errs by the move between both; h·log(1/h) makes that less than 1.5 moves here.

    In the norm of all three statistics: one of them alone may pass through zero error between the grids.
    """
    coarse, fine = (statistics(*push(table_of(make(n), VP(), START), density))[0] for n in (16, 32))
    move = (fine - coarse).norm()
    assert move < 5e-3, "the grids are too coarse to say anything"
    assert (fine - target).norm() < 1.5 * move, (coarse, fine, target)


MIXTURE = {
    "ddpm": lambda n: DDPM(steps=n),
    "ddpm-large": lambda n: DDPM("large", steps=n),
    "ddim-half": lambda n: DDIM(0.5, steps=n),
    "ddim-0": lambda n: DDIM(0.0, steps=n),
    "sde": lambda n: SDE(steps=n, end=1e-9),
    "ode": lambda n: ODE(steps=n, end=1e-9),
    "heun": lambda n: Heun(steps=n, sigma_min=1e-4),
}


@pytest.mark.parametrize("name", MIXTURE.keys())
def test_reversing_the_marginal_of_a_mixture_gives_the_mixture(name):
    mean = (WEIGHTS * MEANS).sum()
    variance = (WEIGHTS * (VARIANCES + (MEANS - mean) ** 2)).sum()
    assert_within_a_step_doubling(MIXTURE[name], marginal, torch.stack([mean, variance, WEIGHTS[0]]))


@pytest.mark.parametrize("name", ["ddpm", "ddpm-large", "sde"])
def test_purifying_one_image_samples_the_posterior(name):
    """The mean, the variance and the share of x₀ | x + sigma·z, averaged over the noise z of that one image."""
    y = line(20_001)
    weights = between(y) / between(y).sum()
    share, mean, variance = posterior(y, SIGMA2)
    first = (weights * (share * mean).sum(1)).sum()
    second = (weights * (share * (variance + mean**2)).sum(1)).sum()
    target = torch.stack([first, second - first**2, (weights * share[:, 0]).sum()])
    assert_within_a_step_doubling(MIXTURE[name], between, target)


@pytest.mark.parametrize("name", MIXTURE.keys())
def test_kernel_has_the_law_of_its_table_on_a_mixture(name):
    """50 000 scalar images against the quadrature of the same table, within 5 standard errors."""
    sampler = MIXTURE[name](8)
    expected, spreads = statistics(*push(table_of(sampler, VP(), START), between))
    x = torch.full((50_000, 1, 1, 1), 0.45, dtype=torch.float64)
    out = purify(Diffusion(TWO, VP(), sampler, START), x, Key(5)).flatten()
    seen = statistics(out, torch.full_like(out, 1 / len(out)))[0]
    assert ((seen - expected).abs() < 5 * spreads / math.sqrt(len(out))).all(), (seen, expected)
