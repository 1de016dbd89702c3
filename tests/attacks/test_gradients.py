from functools import partial

import pytest
import torch
from torch import Tensor, nn

from components import SHAPE, images, net_denoiser
from lustral.attacks.gradients import AnyClass, Gradient, KnownNoise, Selection, blind, bpda, exact, fooled, surrogate
from lustral.attacks.losses import cross_entropy, toward
from lustral.core.adjoint import Direct, Skip, Surrogate
from lustral.core.errors import UserError
from lustral.core.kernel import purify
from lustral.core.noise import Key, Rng
from lustral.core.vote import Abstain, MeanLogits, Single
from lustral.defence import Defence
from lustral.evaluate.judge import judge
from lustral.purifiers.presets import diffpure

KEY = Key(5)
Y = torch.tensor([0, 1, 2, 0])


def classifier(x: Tensor) -> Tensor:
    weights = Key(2).rng(3).normal(torch.empty(3, *SHAPE)).flatten(1)
    return torch.tanh(x.flatten(1) @ weights.T)


def purifier(steps: int = 2):
    return diffpure(net_denoiser(), 0.1, "sde", steps=steps)


def victim(**options) -> Defence:
    return Defence(classifier, purifier(), **options)


@pytest.mark.parametrize("label", [0, 1])
def test_a_decision_without_numbers_is_wrong_whatever_the_label(label):
    logits = torch.tensor([[torch.nan, 0.0], [torch.nan, torch.nan], [3.0, 1.0]])
    assert fooled(victim(), logits, torch.full((3,), label)).tolist() == [True, True, label == 1]


def test_a_decision_that_is_not_taken_is_wrong():
    abstaining = Defence(classifier, purifier(), Abstain(Single(), 0.9))
    x = images(4)
    assert abstaining.decide(x, KEY).label.tolist() == [-1] * 4
    for one in (abstaining, KnownNoise(abstaining, KEY)):
        assert exact(2)(one, x, Y, cross_entropy, KEY.rng(4)).wrong.tolist() == [1.0] * 4


def gradient_of(model, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(leaf), Y).sum(), leaf)
    return grad


@pytest.mark.parametrize("kind", [exact, bpda], ids=["exact", "bpda"])
def test_eot_is_the_mean_of_single_draws_at_their_addresses(kind):
    x = images(4)
    many = kind(3)(victim(), x, Y, cross_entropy, KEY.rng(4))
    single = [kind(1)(victim(), x, Y, cross_entropy, KEY.rng(4, draw)) for draw in range(3)]
    assert torch.allclose(many.grad, torch.stack([s.grad for s in single]).mean(dim=0), atol=1e-6)
    assert torch.allclose(many.loss, torch.stack([s.loss for s in single]).mean(dim=0), atol=1e-6)
    assert torch.allclose(many.wrong, torch.stack([s.wrong for s in single]).mean(dim=0))
    assert not torch.allclose(single[0].grad, single[1].grad, atol=1e-3)


def test_a_batch_gives_every_image_the_gradient_that_it_has_alone():
    x = images(4)
    together = exact(2)(victim(), x, Y, cross_entropy, KEY.rng(4))
    for i in range(4):
        alone = exact(2)(victim(), x[i : i + 1], Y[i : i + 1], cross_entropy, KEY.rng(torch.tensor([i])))
        assert torch.allclose(together.grad[i], alone.grad[0], atol=1e-6)
        assert torch.allclose(together.loss[i], alone.loss[0], atol=1e-6)


def test_exact_is_the_derivative_of_what_runs():
    x, rng = images(4), KEY.rng(4)
    expected = gradient_of(lambda v: classifier(purify(purifier(), v, rng.fold("purify"), adjoint=Direct())), x)
    assert torch.allclose(exact()(victim(), x, Y, cross_entropy, rng).grad, expected, atol=1e-7)


def test_exact_agrees_with_finite_differences(mixture):
    x, rng = images(4, dtype=torch.float64), KEY.rng(4)
    defence = Defence(lambda v: v.flatten(1)[:, :3] ** 2, diffpure(mixture, 0.1, "ode", steps=2))
    direction = Key(8).rng(4).normal(x)
    look = exact()(defence, x, Y, cross_entropy, rng)
    step = 1e-5
    ends = [Selection()(defence, x + s * step * direction, Y, cross_entropy, rng).loss for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert torch.allclose((look.grad * direction).flatten(1).sum(dim=1), slope, rtol=1e-6, atol=1e-9)


def test_bpda_is_the_classifiers_gradient_at_the_purified_image():
    x, rng = images(4), KEY.rng(4)
    clean = purify(purifier(), x, rng.fold("purify"))
    look = bpda()(victim(), x, Y, cross_entropy, rng)
    assert torch.allclose(look.grad, gradient_of(classifier, clean), atol=1e-6)
    assert torch.allclose(look.loss, cross_entropy(classifier(clean), Y), atol=1e-6)


def test_blind_is_the_classifiers_gradient_at_the_image():
    x = images(4)
    assert torch.equal(blind()(victim(), x, Y, cross_entropy, KEY.rng(4)).grad, gradient_of(classifier, x))


def test_surrogate_is_the_exact_gradient_of_the_other_purifier():
    x, rng = images(4), KEY.rng(4)
    other = Defence(classifier, purifier(steps=1))
    look = surrogate(purifier(steps=1))(victim(), x, Y, cross_entropy, rng)
    expected = exact()(other, x, Y, cross_entropy, rng)
    assert torch.equal(look.grad, expected.grad)
    assert torch.equal(look.loss, expected.loss)


def test_the_gradient_goes_through_the_vote():
    x, rng = images(4), KEY.rng(4)
    voting = victim(vote=MeanLogits(3))
    look = exact()(voting, x, Y, cross_entropy, rng)
    assert torch.allclose(look.grad, gradient_of(lambda v: voting.logits(v, rng, Direct()), x), atol=1e-6)


@pytest.mark.parametrize("adjoint", [None, Skip(), Surrogate(purifier(steps=1))], ids=["victim", "skip", "surrogate"])
def test_a_look_without_a_gradient_sees_the_same(adjoint):
    x, rng = images(4), KEY.rng(4)
    looks = (Gradient(adjoint, 2), Selection(2, adjoint))
    with_gradient, without = (f(victim(), x, Y, cross_entropy, rng) for f in looks)
    assert without.grad is None
    assert not without.loss.requires_grad
    assert torch.equal(with_gradient.loss, without.loss)
    assert torch.equal(with_gradient.wrong, without.wrong)


def test_wrong_is_the_share_of_wrong_draws():
    class ByDraw:
        def logits(self, x, rng, adjoint=None):
            return nn.functional.one_hot((rng.draws >= 1).long(), 2).float() + 0 * x.mean()

    for looks in (Selection(4), Gradient(Skip(), 4)):
        look = looks(ByDraw(), images(2), torch.tensor([0, 1]), cross_entropy, KEY.rng(2))
        assert look.wrong.tolist() == [0.75, 0.25]


def test_a_targeted_look_wants_the_target_and_one_where_any_class_will_do_a_wrong_one():
    """Labels are wrong in the first row and the last, the target is reached in the last alone."""
    pairs = torch.tensor([[0, 2], [1, 2], [0, 1]])
    said = Defence(lambda x: torch.tensor([[0.0, 1.0, -1.0]]).expand(len(x), 3) + 0 * x.mean())
    for looks in (Selection(2), Gradient(None, 2)):
        for who, wrong in ((said, [0, 0, 1]), (AnyClass(said), [1, 0, 1])):
            look = looks(who, images(3), pairs, toward, KEY.rng(3))
            assert look.wrong.tolist() == wrong
            assert look.loss.tolist() == [-1, -2, 1]


def test_the_image_and_the_networks_are_left_as_they_were():
    x = images(4)
    before = x.clone()
    exact()(victim(), x, Y, cross_entropy, KEY.rng(4))
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert all(p.grad is None for p in net_denoiser().parameters())


def test_known_noise_is_the_bound_defence_whatever_noise_the_attacker_brings():
    x, defence = images(4), victim(vote=MeanLogits(2))
    known = KnownNoise(defence, KEY)
    expected = defence.bind(KEY)(x)
    assert torch.equal(known.logits(x, Key(77, ("attack",)).rng(4, draw=9)), expected)
    look = exact()(known, x, Y, cross_entropy, Key(78).rng(4))
    assert torch.allclose(look.grad, gradient_of(defence.bind(KEY), x), atol=1e-7)


def test_under_known_noise_all_draws_are_one():
    x = images(4)
    known = KnownNoise(victim(), KEY)
    one, three = (exact(n)(known, x, Y, cross_entropy, Key(1).rng(4)) for n in (1, 3))
    assert torch.allclose(one.grad, three.grad, atol=1e-6)


class Tell:
    """A purifier of [b, 3, 1, 1] images that puts its noise in their place: init's, then that of both steps."""

    n_steps = 2

    def init(self, x: Tensor, rng: Rng) -> tuple[Tensor]:
        return (torch.cat([rng.normal(x[:, :1]), x[:, 1:]], dim=1),)

    def step(self, i: int, state: tuple[Tensor], rng: Rng) -> tuple[Tensor]:
        return (torch.cat([state[0][:, : i + 1], rng.normal(state[0][:, :1]), state[0][:, i + 2 :]], dim=1),)

    def readout(self, state: tuple[Tensor]) -> Tensor:
        return state[0]


# ADDT's settings: all noise is known, the forward process's alone, the reverse process's alone.
SETTINGS = pytest.mark.parametrize(
    ("part", "known"), [("all", [True] * 3), ("init", [True, False, False]), ("step", [False, True, True])]
)


@SETTINGS
def test_the_known_part_repeats_whatever_noise_the_attacker_brings_and_the_rest_is_fresh(part, known):
    told, x = Defence(torch.nn.Flatten(), Tell()), torch.zeros(4, 3, 1, 1)
    victim, brought = KnownNoise(told, KEY, part), [Key(seed, ("attack",)).rng(4) for seed in (7, 8)]
    secret = told.logits(x, KEY.rng(4))
    for rng in brought:
        seen = victim.logits(x, rng)
        expected = torch.where(torch.tensor(known), secret, told.logits(x, rng))
        assert torch.equal(seen, expected)
    columns = [told.logits(x, rng) for rng in (*brought, KEY.rng(4))]
    assert len(torch.stack(columns).flatten().unique()) == 3 * 4 * 3


@SETTINGS
def test_known_noise_of_a_votes_draws_differs_and_that_of_decisions_does_not(part, known):
    told = Defence(torch.nn.Flatten(), Tell(), vote=MeanLogits(3))
    noise = KnownNoise(told, KEY, part).noise
    seen = judge(told, torch.zeros(2, 3, 1, 1), Key(7).rng(2), draws=6, noise=noise).view(2, 2, 3, 3)
    for k, repeats in enumerate(known):
        column = seen[..., k]  # image, decision, draw
        assert torch.equal(column[:, 0], column[:, 1]) == repeats
        assert len(column.unique()) == (6 if repeats else 12)


def test_a_part_of_the_noise_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="'forward'"):
        KnownNoise(victim(), KEY, "forward")


@pytest.mark.parametrize("kind", [exact, bpda, partial(surrogate, purifier())], ids=["exact", "bpda", "surrogate"])
def test_no_draws_at_all_are_refused(kind):
    with pytest.raises(UserError, match="at least 1 draw"):
        kind(eot=0)


def test_a_selection_without_draws_is_refused():
    with pytest.raises(UserError, match="at least 1 draw"):
        Selection(0)
