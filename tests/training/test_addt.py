"""ADDT: published numbers, and a slow implementation of its pseudo-code on DDPM's own scale."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lustral
from lustral.core.noise import Key, Rng
from lustral.denoisers import base
from lustral.schedules import DiscreteVP
from lustral.training.addt import ADDT, ADDTUnmapped, rank_map
from lustral.training.denoising import Denoising
from lustral.training.levels import LogUniform, Times

DDPM = DiscreteVP.linear()
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)  # ᾱ_t = Π_{i ≤ t}, t from 0
N, SHAPE = 6, (2, 4, 4)
X = 0.2 + 0.6 * Key(1).rng(N).uniform(torch.empty(N, *SHAPE, dtype=torch.float64))
Y = torch.arange(N) % 3


class Toy(nn.Module):
    """A denoiser that is not linear, with weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1).double()
        with torch.no_grad():
            for i, p in enumerate(self.conv.parameters()):
                p.copy_(0.3 * Key(3, (i,)).rng(1).normal(p[None])[0])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = base.column(sigma, x)
        return x / (1 + s) + 0.3 * torch.tanh(self.conv(2 * x - 1) + s)


class Guide(nn.Module):
    """A classifier with weights."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(32, 8).double(), nn.Linear(8, 3).double()
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.5 * Key(4, (i,)).rng(1).normal(p[None])[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x.flatten(1))))


def rng() -> Rng:
    return Key(2).rng(N)


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def addt(**options) -> ADDT:
    return ADDT(options.pop("base", Denoising(Times(DDPM), "noise")), options.pop("guide", Guide()), **options)


# ----------------------------------------------------------------------------------------------------------- weights


def test_the_share_on_ddpms_schedule():
    """0.3 up to t = 26, and the stated values after."""
    found = addt().share(0.5 * torch.sqrt((1 - ABAR) / ABAR))
    assert (found[:27] == 0.3).all()
    assert float(found[27]) < 0.3
    assert (found[27:].diff() < 0).all()
    stated = {50: 0.17045, 100: 0.08765, 200: 0.04146, 500: 0.00871, 999: 0.00019}
    assert [float(found[t]) for t in stated] == pytest.approx(list(stated.values()), abs=5e-6)


def test_the_share_in_edms_form():
    """clip(0.03/s, 0, 0.3), s the noise on [-1, 1]."""
    s = torch.tensor([0.01, 0.0999, 0.1, 0.2, 1.0, 80.0], dtype=torch.float64)
    expected = torch.tensor([0.3, 0.3, 0.3, 0.15, 0.03, 0.03 / 80], dtype=torch.float64)
    torch.testing.assert_close(addt().share(s / 2), expected)


# ---------------------------------------------------------------------------------------------------------- rank map


def planes(n: int = 5, c: int = 3, h: int = 4, w: int = 5) -> tuple[Tensor, Tensor]:
    like = torch.empty(n, c, h, w)
    return Key(5).rng(n).normal(like), Key(6).rng(n).normal(like)


def test_rank_map_has_the_draws_values_in_the_order_of_its_input():
    v, z = planes()
    out = rank_map(v, z)
    assert out.shape == v.shape
    for i in range(5):
        for c in range(3):
            assert sorted(out[i, c].flatten().tolist()) == sorted(z[i, c].flatten().tolist())
            assert torch.equal(out[i, c].flatten().argsort(), v[i, c].flatten().argsort())


def test_rank_map_looks_at_ranks_alone():
    v, z = planes()
    for monotone in (lambda a: 1e-6 * a, lambda a: 3 * a + 7, torch.sinh, lambda a: a.double() ** 3):
        assert torch.equal(rank_map(monotone(v), z), rank_map(v, z))
    assert not torch.equal(rank_map(-v, z), rank_map(v, z))
    # Planes do not look at one another, not even at their level.
    level = 100 * torch.arange(15.0).view(5, 3, 1, 1)
    assert torch.equal(rank_map(v + level, z), rank_map(v, z))


def test_rank_map_of_a_plane_depends_on_no_other():
    v, z = planes()
    whole = rank_map(v, z)
    assert torch.equal(rank_map(v[2:3], z[2:3]), whole[2:3])
    assert torch.equal(rank_map(v[:, 1:2], z[:, 1:2]), whole[:, 1:2])


def test_a_rank_map_of_ties_still_has_the_draws_values():
    _, z = planes()
    out = rank_map(torch.zeros_like(z), z)
    assert torch.equal(out.flatten(2), z.flatten(2).sort(dim=2).values)


def test_mixed_noise_has_unit_variance():
    """u = √(1−λ²)·z + λ·d for a rank map d of anything, at every λ; 4 standard deviations."""
    n, like = 400, torch.empty(400, 1, 8, 8)
    d = rank_map(torch.arange(64.0).view(1, 1, 8, 8).expand(like.shape), Key(7).rng(n).normal(like))
    for sigma in (0.01, 0.1, 1.0):
        u = addt().mix(Key(8).rng(n).normal(like), d, torch.full((n,), sigma))
        assert float(u.square().mean()) == pytest.approx(1, abs=4 * (2 / u.numel()) ** 0.5)
        share = float(addt().share(torch.tensor(sigma)))
        assert float((u * d).mean()) == pytest.approx(share * float(d.square().mean()), abs=4 / u.numel() ** 0.5)


# ------------------------------------------------------------------------------------------------ CGPO, by pseudo-code


def slow_rank_map(v: Tensor, z: Tensor) -> Tensor:
    """Of one image [c, h, w], in plain Python: the k-th smallest draw goes where v has its k-th smallest value."""
    out = torch.zeros_like(v)
    for c in range(v.shape[0]):
        values, draws = v[c].flatten().tolist(), sorted(z[c].flatten().tolist())
        places = sorted(range(len(values)), key=lambda i: values[i])
        flat = [0.0] * len(values)
        for k, place in enumerate(places):
            flat[place] = draws[k]
        out[c] = torch.tensor(flat, dtype=v.dtype).view_as(v[c])
    return out


def slow_direction(model: nn.Module, guide: nn.Module, t: Tensor, k: int) -> Tensor:
    """Section 2.5 of the reference, image by image on [-1, 1], with ε and ᾱ; its randn are the addressed noise."""
    eps_theta = base.eps_network(model, DDPM)
    rows = []
    for i in range(N):
        one = rng()[i : i + 1]
        x0, y, abar, time = 2 * X[i : i + 1] - 1, Y[i : i + 1], ABAR[t[i]], (t[i : i + 1] + 1) / 1000
        lam = min(max(0.03 * (abar.sqrt() / (1 - abar).sqrt()).item(), 0.0), 0.3)
        d, total = one.fold("direction").normal(x0), torch.zeros_like(x0)
        for j in range(k):
            z = one.fold("search", j).normal(x0)
            leaf = d.clone().requires_grad_()
            xt = abar.sqrt() * x0 + (1 - abar).sqrt() * ((1 - lam**2) ** 0.5 * z + lam * leaf)
            x0hat = (xt - (1 - abar).sqrt() * eps_theta(xt, time)) / abar.sqrt()
            F.cross_entropy(guide((x0hat + 1) / 2), y).backward(inputs=[leaf])
            total = total + leaf.grad
            d = slow_rank_map(total[0], one.fold("rank", j).normal(x0)[0])[None]
        rows.append(d)
    return torch.cat(rows)


@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_the_direction_is_that_of_the_pseudo_code(k):
    model, guide = Toy(), Guide()
    t = torch.tensor([3, 26, 60, 150, 400, 900])
    sigma = DDPM.sigma((t.double() + 1) / 1000)
    torch.testing.assert_close(sigma, 0.5 * torch.sqrt((1 - ABAR[t]) / ABAR[t]), rtol=1e-9, atol=0)
    found = addt(guide=guide, iterations=k).direction(model, X, Y, sigma, rng())
    expected = slow_direction(model, guide, t, k)
    assert float((found - expected).abs().max()) < 1e-9
    if k > 1:
        fewer = slow_direction(model, guide, t, k - 1)
        assert float((found - fewer).abs().max()) > 0.1


def test_the_search_leaves_nothing_behind():
    model, guide = Toy(), Guide()
    objective = addt(guide=guide)
    model.train()
    d = objective.direction(model, X, Y, torch.full((N,), 0.1, dtype=torch.float64), rng())
    assert not d.requires_grad
    assert all(p.grad is None for part in (model, guide) for p in part.parameters())
    objective(model, X, Y, rng()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in guide.parameters())
    assert model.training


def test_the_search_keeps_the_denoisers_mode():
    """Dropout stays on, as in the published code: 5 searches and the real pass."""
    modes = []

    class Watched(Toy):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            modes.append(self.training)
            return super().forward(x, sigma)

    addt()(Watched().train(), X, Y, rng())
    assert modes == [True] * 6


# ------------------------------------------------------------------------------------------------------------- loss


def test_the_loss_is_the_error_of_the_predicted_combined_noise():
    """|ε̂(x'_t, t) − u|² with x'_t = √ᾱ·x₀ + √(1−ᾱ)·u, on the schedule's own scale."""
    model, objective = Toy(), addt()
    sigma = objective.base.levels(rng().fold("level").uniform(X[:, 0, 0, 0]))
    d = objective.direction(model, X, Y, sigma, rng())
    share = column((0.03 / (2 * sigma)).clamp(0, 0.3))
    u = torch.sqrt(1 - share**2) * rng().fold("noise").normal(X) + share * d
    noisy = X + column(sigma) * u
    expected = (base.noise(model, noisy, sigma) - u).square().flatten(1).mean(1)
    found = objective(model, X, Y, rng())
    assert float((found / expected - 1).abs().max().detach()) < 1e-9
    t = DDPM.time(sigma)
    abar = column(torch.exp(2 * DDPM.log_scale(t)))
    eps = base.eps_network(model, DDPM)(abar.sqrt() * (2 * X - 1) + (1 - abar).sqrt() * u, t)
    assert torch.allclose(found, (eps - u).square().flatten(1).mean(1), rtol=1e-6)


def test_without_a_share_it_is_the_plain_loss():
    objective = addt(unit=0.0)
    assert torch.equal(objective(Toy(), X, Y, rng()), objective.base(Toy(), X, Y, rng()))


def test_images_do_not_depend_on_their_neighbours():
    whole = addt()(Toy(), X, Y, rng())
    for i in (0, 5):
        alone = addt()(Toy(), X[i : i + 1], Y[i : i + 1], rng()[i : i + 1])
        assert torch.allclose(alone[0], whole[i], rtol=1e-9)


def test_directions_fool_the_guide_more_than_random_ones():
    """Trained networks, fresh noise: the guide's loss on 96 digits, averaged over 4 draws."""
    model, guide = lustral.denoiser("digits-unet"), lustral.classifier("digits-cnn")
    n, level, data = 96, 0.4, lustral.data("digits")[:96]
    sigma, draws = torch.full((n,), level), Key(9).rng(n)
    objective = ADDT(Denoising(), guide)
    d = objective.direction(model, data.x, data.y, sigma, draws)
    random = rank_map(draws.fold("other").normal(data.x), draws.fold("values").normal(data.x))

    def loss(d: Tensor) -> Tensor:
        losses = []
        for i in range(4):
            noisy = data.x + level * objective.mix(draws.fold("fresh", i).normal(data.x), d, sigma)
            losses.append(F.cross_entropy(guide(model(noisy, sigma)), data.y, reduction="none"))
        return torch.stack(losses).mean(0)

    with torch.no_grad():
        gain = loss(d) - loss(random)
    assert float(gain.mean()) > 4 * float(gain.std()) / n**0.5
    assert int((gain > 0).sum()) > 5 * int((gain < 0).sum())


# ----------------------------------------------------------------------------------------------- without a rank map


def inputs(objective: ADDTUnmapped) -> list[Tensor]:
    seen, model = [], Toy()

    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x.detach())
        return model(x, sigma)

    objective(watched, X, Y, rng())
    return seen


def test_unmapped_rides_on_the_noise_as_it_is_above_a_twentieth():
    """x' = x + d + sigma·z for sigma > 0.05, d within eps and x + d a valid image, and the target stays x."""
    objective = ADDTUnmapped(Denoising(LogUniform(0.051, 1.0), "noise"), Guide(), eps=0.3)
    sigma = objective.base.sigma(X, rng())
    noisy = inputs(objective)[-1]
    d = noisy - X - column(sigma) * rng().fold("noise").normal(X)
    assert float(d.abs().max()) <= 0.3 + 1e-9
    assert float((d.abs() > 0.14).double().mean()) > 0.5
    assert -1e-9 < float((X + d).min()) < 1e-9  # the range is felt: some pixels are below eps
    assert float((X + d).max()) <= 1 + 1e-9
    expected = ((Toy()(noisy, sigma) - X) / column(sigma)).square().flatten(1).mean(1)
    torch.testing.assert_close(objective(Toy(), X, Y, rng()), expected)


def test_unmapped_rides_tenfold_at_most():
    """Below, x' = x + sigma·(z + 10·2d): the noise on [-1, 1] and the perturbation there."""
    objective = ADDTUnmapped(Denoising(LogUniform(0.002, 0.02), "noise"), Guide(), eps=0.05)
    sigma = objective.base.sigma(X, rng())
    ride = inputs(objective)[-1] - X - column(sigma) * rng().fold("noise").normal(X)
    d = ride / (20 * column(sigma))
    assert float(d.abs().max()) == pytest.approx(0.05, abs=1e-9)


def test_unmapped_searches_by_sign_steps_of_half_the_radius_with_fresh_noise():
    """By hand, with 3 steps: d ← clip(d + eps/2·sign ∇CE), gradients not accumulated."""
    model, guide, eps = Toy(), Guide(), 0.1
    objective = ADDTUnmapped(Denoising(LogUniform(0.06, 0.5), "noise"), guide, eps=eps, iterations=3)
    sigma = objective.base.sigma(X, rng())
    d = torch.zeros_like(X)
    for i in range(3):
        leaf = d.clone().requires_grad_()
        noisy = X + leaf + column(sigma) * rng().fold("search", i).normal(X)
        F.cross_entropy(guide(model(noisy, sigma)), Y, reduction="sum").backward(inputs=[leaf])
        d = ((X + d + eps / 2 * leaf.grad.sign()).clamp(0, 1) - X).clamp(-eps, eps)
    expected = X + d + column(sigma) * rng().fold("noise").normal(X)
    assert float((inputs(objective)[-1] - expected).abs().max()) < 1e-9
