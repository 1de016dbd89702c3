"""Samplers with a start time for every sample: those that are done rest, and gradients flow through the times."""

import pytest
import torch

from lustral.core.adjoint import Direct
from lustral.core.kernel import purify
from lustral.core.noise import Key
from lustral.denoisers.base import Meter
from lustral.denoisers.ideal import GaussianMixture
from lustral.purifiers.diffusion import Diffusion
from lustral.samplers import DDIM, DDPM, ODE, SDE, Heun, Langevin, OneShot
from lustral.schedules import EDM, VP, DiscreteVP


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


TWO = GaussianMixture(f64(0.25, 0.7).view(2, 1, 1, 1), f64(0.004, 0.012), f64(0.35, 0.65))
TIMES = [0.1, 0.0437, 0.003, 0.0999]
SAMPLERS = {
    "ddpm": DDPM(dt=0.01),
    "ddpm-large": DDPM("large", dt=0.01),
    "ddim": DDIM(0.3, dt=0.01),
    "sde": SDE(dt=0.01),
    "sde-mean": SDE(dt=0.01, mean=True),
    "ode": ODE(dt=0.01),
    "langevin": Langevin(),
    "ddpm-steps": DDPM(steps=7),
    "sde-steps": SDE(steps=7),
    "heun": Heun(4),
    "one-shot": OneShot(),
}
BY_DT = ["ddpm", "ddpm-large", "ddim", "sde", "sde-mean", "ode", "langevin"]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


@pytest.mark.parametrize("name", BY_DT)
def test_a_sample_that_is_done_rests(name):
    sampler = SAMPLERS[name]
    n = sampler.n_steps(VP(), 0.1)
    table = sampler.table(VP(), f64(*TIMES), n)
    steps = [10, 5, 1, 10]  # ⌈t*/0.01⌉
    done = torch.arange(n) >= torch.tensor(steps)[:, None]
    assert n == 10
    assert (table.b != 0).equal(~done)
    for column, idle in ((table.a, 1.0), (table.b, 0.0), (table.c, 0.0), (table.pull, 0.0)):
        assert (column[done] == idle).all()


def test_without_noise_in_each_samples_own_last_step():
    plain, mean = (SDE(dt=0.01, mean=mean).table(VP(), f64(*TIMES), 10) for mean in (False, True))
    last = torch.tensor([9, 4, 0, 9])
    assert (plain.c.gather(1, last[:, None]) > 0).all()
    assert mean.c.equal(plain.c.scatter(1, last[:, None], 0.0))
    assert all(a.equal(b) for a, b in zip(mean[:3] + mean[4:], plain[:3] + plain[4:], strict=True))


@pytest.mark.parametrize("sampler", [DDPM(dt=1e-3), DDIM(dt=1e-3), SDE(dt=1e-3, end=0.01)], ids=["ddpm", "ddim", "sde"])
def test_rounding_leaves_no_sliver_as_a_step(sampler):
    """k/1000 less k steps of 0.001 is not always 0 in binary."""
    k = torch.arange(1, 301)
    t_star = k.double() / 1000 + getattr(sampler, "end", 0.0)
    table = sampler.table(VP(), t_star, sampler.n_steps(VP(), float(t_star.max())))
    assert table.b.shape == (300, 300)
    assert ((table.b != 0).sum(1) == k).all()


def per_sample(x):
    return f64(*TIMES)[: len(x)]


@pytest.mark.parametrize("name", BY_DT)
def test_a_sample_that_is_done_makes_no_network_call(name):
    meter = Meter()
    watched = meter.watch(TWO)
    purify(Diffusion(watched, VP(), SAMPLERS[name], per_sample, t_max=0.1), f64(0.1, 0.2, 0.5, 0.9).view(4, 1, 1, 1), 0)
    assert meter.here.forward == 10 + 5 + 1 + 10


@each_sampler
@pytest.mark.parametrize("schedule", [VP(), DiscreteVP.linear()], ids=["vp", "discrete"])
def test_a_sample_with_its_own_start_equals_that_start_alone(sampler, schedule):
    x = f64(0.1, 0.4, 0.6, 0.9).view(4, 1, 1, 1)
    rng = Key(2).rng(4)
    together = purify(Diffusion(TWO, schedule, sampler, per_sample, t_max=0.1), x, rng)
    for i, t in enumerate(TIMES):
        alone = purify(Diffusion(TWO, schedule, sampler, t), x[i : i + 1], rng[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-12)


@each_sampler
@pytest.mark.parametrize("schedule", [VP(), DiscreteVP.linear(n=37), EDM()], ids=["vp", "discrete", "edm"])
def test_table_is_differentiable_in_t_star(sampler, schedule):
    """Against finite differences, at times where no step begins or ends."""
    t_star = f64(0.0937, 0.0471, 0.00613).requires_grad_()
    n = sampler.n_steps(schedule, 0.1)

    def columns(t):
        return tuple(c for c in sampler.table(schedule, t, n) if c.requires_grad)

    assert columns(t_star)
    assert torch.autograd.gradcheck(columns, t_star, eps=1e-7, atol=1e-5, rtol=1e-4)


@each_sampler
def test_gradient_flows_through_t_star_to_the_image(sampler):
    """The whole derivative of an output with a start time that depends on the image, in float64."""
    x = torch.tensor([0.3, 0.62], dtype=torch.float64).view(2, 1, 1, 1).requires_grad_()
    purifier = Diffusion(TWO, VP(), sampler, lambda x: 0.0437 + 0.03 * x.flatten(1).mean(1), t_max=0.1)
    rng = Key(4).rng(2)
    assert torch.autograd.gradcheck(lambda x: purify(purifier, x, rng, adjoint=Direct()), x, atol=1e-6, rtol=1e-5)


def test_heun_ends_where_edms_sampler_does():
    """Karras et al. (2022), eq. 5, on [-1, 1]: from 80 down to 0.002 with rho 7; half of that on [0, 1]."""
    n = 18
    found = Heun(n).table(EDM(), torch.tensor([40.0], dtype=torch.float64), 2 * n - 1).sigma[0]
    expected = [(80 ** (1 / 7) + k / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 / 2 for k in range(n)]
    assert found[::2].tolist() == pytest.approx(expected, rel=1e-9)
    assert found[-1] == pytest.approx(0.001)
