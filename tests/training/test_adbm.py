"""ADBM: published numbers, and a slow implementation of its bridge on the scale of its paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.core.noise import Key, Rng
from lustral.denoisers import base
from lustral.schedules import VP
from lustral.training.adbm import ADBM, left
from lustral.training.denoising import Denoising
from lustral.training.inner import evaluating
from lustral.training.levels import Times

N, SHAPE = 12, (2, 4, 4)
X = 0.02 + 0.96 * Key(1).rng(N).uniform(torch.empty(N, *SHAPE, dtype=torch.float64))
Y = torch.arange(N) % 3
EPS = 0.06
NOISE = Denoising(Times(VP()), "noise")


class Toy(nn.Module):
    """A denoiser with dropout, and with a part whose mode is its own."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.conv, self.drop, self.frozen = nn.Conv2d(2, 2, 3, padding=1).double(), nn.Dropout(dropout), nn.Identity()
        self.inputs: list[Tensor] = []
        self.sigmas: list[Tensor] = []
        self.modes: list[tuple[bool, ...]] = []
        with torch.no_grad():
            for i, p in enumerate(self.conv.parameters()):
                p.copy_(0.3 * Key(3, (i,)).rng(1).normal(p[None])[0])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.inputs.append(x.detach())
        self.sigmas.append(sigma)
        self.modes.append((self.training, self.conv.training, self.drop.training, self.frozen.training))
        s = base.column(sigma, x)
        return self.frozen(x / (1 + s) + 0.3 * self.drop(torch.tanh(self.conv(2 * x - 1) + s)))


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(32, 3).double()
        with torch.no_grad():
            self.out.weight.copy_(0.5 * Key(4).rng(3).normal(self.out.weight))
            self.out.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sin(3 * x.flatten(1)))


def rng() -> Rng:
    return Key(2).rng(N)


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def abar(t: Tensor) -> Tensor:
    return torch.exp(-0.5 * 19.9 * t**2 - 0.1 * t)


def adbm(**options) -> ADBM:
    return ADBM(NOISE, options.pop("guide", Guide()), eps=options.pop("eps", EPS), **options)


def times(objective: ADBM) -> tuple[Tensor, Tensor]:
    """t and T as addressed: T uniform in [t_low, t_high], t uniform in [t_min, T]."""
    u, v = (rng().fold(name).uniform(X[:, 0, 0, 0]) for name in ("level", "end"))
    end = objective.t_low + (objective.t_high - objective.t_low) * v
    return objective.t_min + (end - objective.t_min) * u, end


# ----------------------------------------------------------------------------------------------------------- bridge


def test_the_share_left_is_the_papers():
    """k_t = ᾱ_T(1 − ᾱ_t)/(ᾱ_t(1 − ᾱ_T)) on the continuous VP process."""
    for end in (0.1, 0.15, 0.2, 1.0):
        last = torch.tensor(end, dtype=torch.float64)
        t = torch.linspace(1e-5, end, 50, dtype=torch.float64)
        k = abar(last) * (1 - abar(t)) / (abar(t) * (1 - abar(last)))
        torch.testing.assert_close(left(VP().sigma(t), VP().sigma(last)), k, rtol=1e-9, atol=0)


STATED = [
    (0.1, {0.025: 0.0757, 0.05: 0.2621, 0.075: 0.5662, 0.1: 1.0}),
    (0.2, {0.05: 0.0584, 0.1: 0.2230, 0.15: 0.5200, 0.2: 1.0}),
]


@pytest.mark.parametrize(("end", "table"), STATED)
def test_the_share_left_in_numbers(end, table):
    t, last = (torch.tensor(v, dtype=torch.float64) for v in (list(table), end))
    assert left(VP().sigma(t), VP().sigma(last)).tolist() == pytest.approx(list(table.values()), abs=5e-5)


def test_the_bridge_ends_at_the_clean_image_and_at_the_diffused_adversarial_one():
    last = torch.tensor(0.15, dtype=torch.float64)
    assert float(left(VP().sigma(last * 0), VP().sigma(last))) == 0
    assert float(left(VP().sigma(last), VP().sigma(last))) == 1


# ------------------------------------------------------------------------------------------- the paper, slow, [-1, 1]


def paper(model: nn.Module, guide: nn.Module, objective: ADBM, steps: int) -> tuple[Tensor, Tensor]:
    """Loss [b] and adversarial images on [-1, 1]: sections 4.1 and 4.2 of the reference, image by image."""
    eps_theta = base.eps_network(model, VP())
    all_t, all_end = times(objective)
    losses, images = [], []
    for i in range(N):
        one, x0, y = rng()[i : i + 1], 2 * X[i : i + 1] - 1, Y[i : i + 1]
        t, a, a_end = all_t[i : i + 1], abar(all_t[i]), abar(all_end[i])
        k, e = a_end * (1 - a) / (a * (1 - a_end)), 2 * objective.eps
        z = one.fold("noise").normal(x0)

        def state(x_adv: Tensor, a=a, k=k, z=z, x0=x0) -> Tensor:
            return a.sqrt() * x0 + (1 - a).sqrt() * z + a.sqrt() * k * (x_adv - x0)

        x_adv = (x0 + e * (2 * one.fold("start").uniform(x0) - 1)).clamp(-1, 1)
        for _ in range(steps):
            leaf = x_adv.clone().requires_grad_()
            x_t = state(leaf)
            x0hat = (x_t - (1 - a).sqrt() * eps_theta(x_t, t)) / a.sqrt()
            F.cross_entropy(guide((x0hat + 1) / 2), y).backward(inputs=[leaf])
            x_adv = torch.max(torch.min(x_adv + e * leaf.grad.sign(), x0 + e), x0 - e).clamp(-1, 1)
        u = z + (x_adv - x0) * k * a.sqrt() / (1 - a).sqrt()
        torch.testing.assert_close((state(x_adv) - (1 - a).sqrt() * u) / a.sqrt(), x0, rtol=0, atol=1e-12)
        losses.append((eps_theta(state(x_adv), t) - u).square().mean())
        images.append(x_adv)
    return torch.stack(losses).detach(), torch.cat(images)


def adversarial(model: Toy, objective: ADBM) -> Tensor:
    """The perturbed images of the real pass, from what the network saw."""
    t, end = times(objective)
    sigma, noise = column(VP().sigma(t)), rng().fold("noise").normal(X)
    return X + (model.inputs[-1] - X - sigma * noise) / column(left(VP().sigma(t), VP().sigma(end)))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_loss_and_search_are_the_papers(steps):
    """The search has the T, t and z of the loss, in eps form: mean |ε̂ − u_t|²."""
    objective, model = adbm(iterations=steps), Toy()
    found = objective(model, X, Y, rng()).detach()
    expected, images = paper(Toy(), objective.guide, objective, steps)
    assert float((found / expected - 1).abs().max()) < 1e-8
    assert len(model.inputs) == steps + 1
    assert float((2 * adversarial(model, objective) - 1 - images).abs().max()) < 1e-8


def test_every_call_has_the_levels_of_the_schedule():
    objective, model = adbm(), Toy()
    objective(model, X, Y, rng())
    t, end = times(objective)
    for sigma in model.sigmas:
        torch.testing.assert_close(sigma, VP().sigma(t))
    assert (t < end).all()
    assert float(end.min()) >= 0.1
    assert float(end.max()) <= 0.2
    assert float(end.max() - end.min()) > 0.05


def test_adversarial_images_stay_in_the_ball_and_in_the_range_and_reach_their_edges():
    objective, model = adbm(eps=0.1), Toy()
    objective(model, X, Y, rng())
    x_adv = adversarial(model, objective)
    assert float((x_adv - X).abs().max()) == pytest.approx(0.1, abs=1e-9)
    assert float(x_adv.min()) == pytest.approx(0, abs=1e-9)
    assert float(x_adv.max()) == pytest.approx(1, abs=1e-9)


def test_equal_images_have_times_of_their_own():
    """The published code draws one T for a batch."""
    twins = torch.cat([X[:1], X[:1]])
    sigma, end = adbm().times(twins[:, 0, 0, 0], rng()[:2])
    assert float(end[0] - end[1]) != 0
    assert float(sigma[0] - sigma[1]) != 0
    again = adbm().times(twins[1:, 0, 0, 0], rng()[1:2])
    assert float(again[1][0]) == float(end[1])


def test_images_do_not_depend_on_their_neighbours():
    whole = adbm()(Toy(), X, Y, rng())
    for i in (0, 7):
        alone = adbm()(Toy(), X[i : i + 1], Y[i : i + 1], rng()[i : i + 1])
        assert torch.allclose(alone[0], whole[i], rtol=1e-9)


def test_without_a_perturbation_it_is_the_plain_loss_at_its_levels():
    objective, model = adbm(eps=0.0), Toy()
    t, _ = times(objective)
    noisy = X + column(VP().sigma(t)) * rng().fold("noise").normal(X)
    torch.testing.assert_close(objective(model, X, Y, rng()), NOISE.error(model, X, noisy, VP().sigma(t)))


# -------------------------------------------------------------------------------------------------- modes, gradients


def test_modes_of_all_parts_are_restored():
    """Searches are in evaluation mode; the real pass, and all after it, is as it was, part by part."""
    model = Toy().train()
    model.frozen.eval()
    adbm()(model, X, Y, rng())
    assert model.modes == [(False,) * 4] * 3 + [(True, True, True, False)]
    assert (model.training, model.conv.training, model.drop.training, model.frozen.training) == (
        True,
        True,
        True,
        False,
    )


def test_modes_are_restored_after_an_error():
    model = Toy().train()
    model.frozen.eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 / int(model.drop.training)
    assert (model.training, model.drop.training, model.frozen.training) == (True, True, False)


def test_dropout_is_active_in_the_real_pass_only():
    """Two passes differ by dropout, and what they were searched with does not."""
    one, two = Toy(0.5).train(), Toy(0.5).train()
    losses = [adbm()(model, X, Y, rng()).detach() for model in (one, two)]
    assert not torch.allclose(*losses)
    assert all(torch.equal(a, b) for a, b in zip(one.inputs, two.inputs, strict=True))


def test_gradients_reach_the_denoiser_alone():
    model, guide = Toy(), Guide()
    loss = adbm(guide=guide)(model, X, Y, rng())
    assert all(p.grad is None for part in (model, guide) for p in part.parameters())
    loss.sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters())
    assert all(p.grad is None for p in guide.parameters())
