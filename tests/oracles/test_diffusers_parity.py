"""DDPM and DDIM steps against Hugging Face diffusers, an independent implementation in other coordinates.

diffusers' timestep k stands after k + 1 betas, so it is our time (k + 1)/N, and "before timestep 0" is our time 0. Its
schedulers build float32 tables; here they are given the same betas in float64, so that both sides are compared to
rounding. DDPMScheduler draws its own noise: a generator of the same seed reproduces it. DDIMScheduler takes the noise.
"""

import pytest
import torch

from lustral.denoisers.base import eps_network
from lustral.denoisers.ideal import GaussianMixture
from lustral.purifiers.diffusion import Diffusion
from lustral.samplers import DDIM, DDPM
from lustral.schedules import DiscreteVP

diffusers = pytest.importorskip("diffusers")
scheduling_ddpm = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")


def linear(first, last, n):
    return torch.linspace(first, last, n, dtype=torch.float64)


BETAS = {
    "linear-1000": linear(1e-4, 0.02, 1000),
    "scaled-linear-1000": linear(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    "cosine-1000": torch.tensor(DiscreteVP.cosine(1000).betas, dtype=torch.float64),
    "linear-100": linear(1e-3, 0.2, 100),
    "cosine-50": torch.tensor(DiscreteVP.cosine(50).betas, dtype=torch.float64),
}
SAMPLERS = {
    "ddpm-small": (DDPM, {"variance": "small"}),
    "ddpm-large": (DDPM, {"variance": "large"}),
    "ddim-0": (DDIM, {"eta": 0.0}),
    "ddim-half": (DDIM, {"eta": 0.5}),
    "ddim-1": (DDIM, {"eta": 1.0}),
}
GRIDS = ["every", "trailing", "leading"]  # all N steps; 10 steps from t = 1; 10 steps from t = 0.9 + 1/N
each_betas = pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS.keys())
each_sampler = pytest.mark.parametrize(("kind", "options"), SAMPLERS.values(), ids=SAMPLERS.keys())
each_grid = pytest.mark.parametrize("grid", GRIDS)


def scheduler_for(kind, options, betas, grid):
    """Their scheduler, set to a grid, in float64."""
    shared = {
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "clip_sample": False,
        "timestep_spacing": "leading" if grid == "every" else grid,
    }
    if kind is DDPM:
        theirs = diffusers.DDPMScheduler(variance_type=f"fixed_{options['variance']}", **shared)
    else:
        theirs = diffusers.DDIMScheduler(set_alpha_to_one=True, steps_offset=0, **shared)
    theirs.betas, theirs.alphas, theirs.alphas_cumprod = betas, 1 - betas, (1 - betas).cumprod(0)
    theirs.set_timesteps(len(betas) if grid == "every" else 10)
    return theirs


def sampler_for(kind, options, n, grid):
    """Our sampler and start time on the same grid."""
    if grid == "every":
        return kind(**options), 1.0
    return kind(**options, dt=0.1), 1.0 if grid == "trailing" else 0.9 + 1 / n


def their_step(theirs, options, eps, k, x, seed):
    """One step of theirs and the noise that went into it."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    if "eta" in options:
        return theirs.step(eps, k, x, eta=options["eta"], variance_noise=noise).prev_sample, noise
    return theirs.step(eps, k, x, generator=torch.Generator().manual_seed(seed)).prev_sample, noise


@each_betas
@each_sampler
@each_grid
def test_a_step_equals_that_of_diffusers(betas, kind, options, grid):
    """x_s from random x_t and ε: our row on y = ½ + x_t/(2√ᾱ_t), D = y − sigma·ε, back by 2√ᾱ_s·(y − ½)."""
    n = len(betas)
    theirs = scheduler_for(kind, options, betas, grid)
    sampler, t_star = sampler_for(kind, options, n, grid)
    schedule = DiscreteVP(tuple(betas.tolist()))
    table = sampler.table(schedule, torch.tensor([t_star], dtype=torch.float64), len(theirs.timesteps))
    times = (theirs.timesteps + 1).double() / n
    torch.testing.assert_close(table.sigma[0], schedule.sigma(times), rtol=1e-9, atol=0)
    scale = torch.exp(schedule.log_scale(torch.cat([times, times.new_zeros(1)])))
    g = torch.Generator().manual_seed(0)
    last = len(theirs.timesteps) - 1
    for i in sorted({0, 1, last // 2, last - 2, last - 1, last}):
        x, eps = torch.randn(2, 3, 1, 4, 4, generator=g, dtype=torch.float64)
        expected, noise = their_step(theirs, options, eps, theirs.timesteps[i], x, seed=i)
        if i == last and options == {"variance": "large"} and theirs.timesteps[i] > 0:
            # They leave the noise of a long last step in the image; as in Ho et al., ours ends with the mean.
            expected = expected - torch.sqrt(1 - theirs.alphas_cumprod[theirs.timesteps[i]]) * noise
        y = 0.5 + x / (2 * scale[i])
        a, b, c = (float(column[0, i]) for column in (table.a, table.b, table.c))
        moved = a * (y - 0.5) + b * (y - table.sigma[0, i] * eps - 0.5) + c * noise
        torch.testing.assert_close(2 * scale[i + 1] * moved, expected, rtol=1e-6, atol=1e-8)


class Tape:
    """Noise that was drawn elsewhere, replayed step by step."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, like):
        return self.noise


TRAJECTORIES = [
    ("ddpm-small", "linear-100", "every"),
    ("ddpm-large", "linear-100", "every"),
    ("ddpm-small", "linear-1000", "trailing"),
    ("ddim-0", "cosine-50", "every"),
    ("ddim-half", "scaled-linear-1000", "leading"),
    ("ddim-1", "linear-1000", "trailing"),
]


@pytest.mark.parametrize(("name", "betas", "grid"), TRAJECTORIES, ids=map("-".join, TRAJECTORIES))
def test_a_whole_reverse_process_equals_that_of_diffusers(name, betas, grid):
    """From pure noise to the image, with the ε-network of an exact denoiser on their side and D itself on ours."""
    (kind, options), betas = SAMPLERS[name], BETAS[betas]
    schedule = DiscreteVP(tuple(betas.tolist()))
    means = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    denoiser = GaussianMixture(means, torch.tensor([0.01, 0.02, 0.05], dtype=torch.float64))
    network = eps_network(denoiser, schedule)
    theirs = scheduler_for(kind, options, betas, grid)
    sampler, t_star = sampler_for(kind, options, len(betas), grid)
    ours = Diffusion(denoiser, schedule, sampler, t_star)

    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    top = torch.tensor(t_star, dtype=torch.float64)
    start = torch.full_like(x, 0.5)  # y = ½ + sigma·z, and x_t = 2√ᾱ·(y − ½)
    state = ours.init(start, Tape(x / (2 * torch.exp(schedule.log_scale(top)) * schedule.sigma(top))))
    assert ours.n_steps == len(theirs.timesteps)
    for i, k in enumerate(theirs.timesteps):
        t = torch.full((3,), (int(k) + 1) / len(betas), dtype=torch.float64)
        x, noise = their_step(theirs, options, network(x, t), k, x, seed=i)
        state = ours.step(i, state, Tape(noise))
    torch.testing.assert_close(ours.readout(state), (x + 1) / 2, rtol=1e-6, atol=1e-8)


def test_betas_equal_those_of_diffusers():
    """Within the float32 in which theirs are made."""
    theirs = diffusers.DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02).betas
    torch.testing.assert_close(torch.tensor(DiscreteVP.linear().betas), theirs, rtol=1e-6, atol=0)
    theirs = scheduling_ddpm.betas_for_alpha_bar(1000)
    torch.testing.assert_close(torch.tensor(DiscreteVP.cosine().betas), theirs, rtol=1e-6, atol=0)
