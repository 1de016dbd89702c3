"""Every objective, trained: does the network become the exact denoiser of its data?

The data are a mixture of three Gaussians on images of two pixels, drawn afresh at every step, so that the exact
denoiser is known in closed form and nothing can be learnt by heart. The measure is, on fresh data and at levels as in
training,

    √E|D − D*|² / √E|x' − D*|²,

the error beside that of leaving the noise in (1 for a denoiser that does nothing).
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lustral.denoisers.base import column
from lustral.denoisers.ideal import GaussianMixture
from lustral.denoisers.preconditioning import EDM, NCSN, VPEps, VPredict
from lustral.schedules import VP
from lustral.training.adbm import ADBM
from lustral.training.addt import ADDT
from lustral.training.denoising import Denoising
from lustral.training.levels import Geometric, LogNormal, LogUniform, Times

SHAPE = (1, 1, 2)
BOUND = 0.1
MEANS = torch.tensor([[0.2, 0.3], [0.8, 0.4], [0.4, 0.8]]).view(3, *SHAPE)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
EXACT = GaussianMixture(MEANS, torch.tensor([0.01, 0.02, 0.03]), WEIGHTS)


class Fast:
    """Fresh noise from torch's own generator in the place of addressed noise, which is drawn row by row."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def fold(self, *names) -> "Fast":
        return self

    def normal(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).normal_(generator=self.generator)

    def uniform(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).uniform_(generator=self.generator)


class MLP(nn.Module):
    """Two hidden layers; without ``levels`` it is not told the noise."""

    def __init__(self, condition: Callable[[Tensor], Tensor] | None = None, width: int = 32):
        super().__init__()
        self.condition = condition
        inputs = 2 if condition is None else 4
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        if self.condition is not None:
            told = self.condition(c)[:, None]
            flat = torch.cat([flat, told, told**2], dim=1)
        return self.layers(flat).view_as(x)


def sample(n: int, rng: Fast) -> tuple[Tensor, Tensor]:
    """Images and the component that each came from."""
    which = torch.multinomial(WEIGHTS, n, replacement=True, generator=rng.generator)
    x = MEANS[which]
    return x + column(EXACT.variances[which].sqrt(), x) * rng.normal(x), which


def fit(model: nn.Module, objective, steps: int = 800, batch: int = 2048, rate: float = 0.01) -> nn.Module:
    """Adam along a cosine."""
    rng = Fast(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        x, y = sample(batch, rng)
        optimiser.zero_grad()
        objective(model, x, y, rng).mean().backward()
        optimiser.step()
    return model


@torch.no_grad()
def error(model: nn.Module, levels: Callable[[Tensor], Tensor], exact: Callable = EXACT, n: int = 20_000) -> float:
    """The relative error at 8 levels in the order of the training's distribution, averaged."""
    found = []
    for i in range(8):
        rng = Fast(100 + i)
        sigma = levels((i + rng.uniform(torch.empty(n))) / 8)
        x, _ = sample(n, rng)
        noisy = x + column(sigma, x) * rng.normal(x)
        best = exact(noisy, sigma)
        found.append(float((model(noisy, sigma) - best).square().mean() / (noisy - best).square().mean()) ** 0.5)
    return sum(found) / len(found)


def edm_net() -> EDM:
    return EDM(MLP(lambda c: c), sigma_data=0.25)


def eps_net() -> VPEps:
    return VPEps(MLP(lambda c: torch.log(c / 100)), VP())


def v_net() -> VPredict:
    return VPredict(MLP(lambda c: torch.log(c / 100)), VP())


GUIDE = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
SHORT, BRIDGE = Times(VP(), t_min=0.06, t_max=0.3), Times(VP(), t_min=0.06, t_max=0.2)
CASES = {
    "ddpm-eps": (eps_net, Denoising(Times(VP(), t_min=0.06), "noise"), None),
    "ddpm-eps-truncated": (eps_net, Denoising(SHORT, "noise"), None),
    "v": (v_net, Denoising(Times(VP(), t_min=0.06), "v"), None),
    "edm": (edm_net, Denoising(LogNormal(-0.5, 0.5, 2.0), "edm"), None),
    "edm-log-uniform": (edm_net, Denoising(LogUniform(0.1, 1.0), "edm"), None),
    "addt-without-share": (eps_net, ADDT(Denoising(SHORT, "noise"), GUIDE, iterations=1, unit=0.0), None),
    "adbm-without-radius": (eps_net, ADBM(Denoising(SHORT, "noise"), GUIDE, t_min=0.06, eps=0.0, iterations=1), BRIDGE),
}


@pytest.mark.parametrize("name", CASES)
def test_the_exact_denoiser_is_learnt(name):
    """The untrained network fails the bound, and is at least three times as far away as the trained one."""
    make, objective, levels = CASES[name]
    levels = levels or getattr(objective, "base", objective).levels
    torch.manual_seed(0)
    model = make()
    untrained = error(model, levels)
    trained = error(fit(model, objective), levels)
    print(f"{name}: {untrained:.3f} -> {trained:.3f}")
    assert untrained > max(1.5 * BOUND, 3 * trained)
    assert trained < BOUND


def field(levels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The best denoiser x + sigma·F(x) for an F that is not told sigma, trained on the ladder ``levels``.

    Its loss |F(x') + z|² is met by F*(x') = −E[z | x'] = Σ_i p(sigma_i | x')·(D*(x', sigma_i) − x')/sigma_i, where
    p(sigma_i | x') goes with the density of x' at sigma_i, a mixture of Gaussians again.
    """

    def density(x: Tensor, sigma: Tensor) -> Tensor:
        total = EXACT.variances + sigma**2
        distance = (x.flatten(1)[:, None] - MEANS.flatten(1)).square().sum(2)
        return (WEIGHTS / total * torch.exp(-distance / (2 * total))).sum(1)

    def best(x: Tensor, sigma: Tensor) -> Tensor:
        weight = torch.stack([density(x, s) for s in levels])
        weight = weight / weight.sum(0)
        each = torch.stack([(EXACT(x, s.expand(len(x))) - x) / s for s in levels])
        return x + column(sigma, x) * (weight.view(len(levels), -1, 1, 1, 1) * each).sum(0)

    return best


@pytest.mark.parametrize(("low", "high", "told"), [(0.25, 0.8, 0.11), (0.29, 0.31, 0.05)], ids=["wide", "narrow"])
def test_score_matching_on_a_ladder_reaches_the_best_field_that_is_not_told_sigma(low, high, told):
    """NCSN: on a wide ladder that field is far from the exact denoiser; on a narrow one it is near."""
    ladder = Geometric(low, high, 4)
    best = field(ladder(torch.arange(4) / 4 + 0.1))
    torch.manual_seed(0)
    model = NCSN(MLP())
    untrained = error(model, ladder, best)
    fit(model, Denoising(ladder, "noise"))
    trained, exact = error(model, ladder, best), error(best, ladder)
    print(f"ncsn {low}-{high}: {untrained:.3f} -> {trained:.3f}, class {exact:.3f}")
    assert untrained > 4 * BOUND
    assert trained < BOUND
    assert exact > told if told > BOUND else exact < told


def test_another_distribution_of_data_fails_the_bound():
    """The measure sees a wrong denoiser: the exact one of the same means without spread, or with equal weights."""
    levels = LogUniform(0.02, 1.0)
    spread = GaussianMixture(MEANS, torch.full((3,), 1e-4), WEIGHTS)
    weights = GaussianMixture(MEANS, EXACT.variances, torch.tensor([0.05, 0.05, 0.9]))
    assert error(EXACT, levels) == 0
    assert error(spread, levels) > 2 * BOUND
    assert error(weights, levels) > 1.5 * BOUND
