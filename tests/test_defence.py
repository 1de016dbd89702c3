import copy

import pytest
import torch
from torch import Tensor, nn

from components import PURIFIERS, SHAPE, Counted, images, scramble, squash
from lustral.attacks.gradients import KnownNoise
from lustral.classifiers.small import SmallCNN
from lustral.core.adjoint import Direct, Identity, Skip, Surrogate
from lustral.core.errors import UserError
from lustral.core.kernel import purify, trace
from lustral.core.lanes import Lanes
from lustral.core.noise import Key, Veiled
from lustral.core.vote import Abstain, Majority, MeanLogits, MeanSoftmax, Single
from lustral.defence import Defence, defend
from lustral.purifiers.compose import from_function, when
from lustral.purifiers.presets import adp_gated, diffpure

KEY = Key(71)
IDS = torch.tensor([8, 2**35, 0, 3, 5])
VOTES = [Single(), MeanLogits(3), MeanSoftmax(3), Majority(3), Abstain(MeanSoftmax(2), 0.05)]


@pytest.fixture
def classifier() -> nn.Module:
    return scramble(SmallCNN(width=4, classes=3))


@pytest.fixture
def purifier(net):
    return PURIFIERS["sde-steps"](net)


def test_a_defence_is_the_classifier_on_purified_images(classifier, purifier, x):
    defence = defend(classifier, purifier)
    rng = KEY.rng(IDS)
    expected = classifier(purify(purifier, x, rng.fold("purify")))
    assert torch.equal(defence.draws(x, rng), expected)
    assert torch.equal(defence.logits(x, rng), expected)
    assert defence.decide(x, rng).label.tolist() == expected.argmax(dim=1).tolist()


@pytest.mark.parametrize("vote", VOTES, ids=str)
def test_decide_logits_and_single_draws_agree(vote, classifier, purifier, x):
    defence = defend(classifier, purifier, vote)
    verdict = defence.decide(x, KEY.rng(IDS))
    one_by_one = torch.stack([defence.draws(x, KEY.rng(IDS, draw)) for draw in range(vote.draws)], dim=1)
    assert verdict.draws.shape == (5, vote.draws, 3)
    assert torch.allclose(verdict.draws, one_by_one, rtol=0, atol=1e-5)
    assert torch.allclose(verdict.logits, vote.merge(one_by_one), rtol=0, atol=1e-5)
    assert torch.equal(verdict.label, vote.label(verdict.logits))
    assert torch.equal(defence.logits(x, KEY.rng(IDS)), verdict.logits)
    if vote.draws > 1:
        assert (verdict.draws.std(dim=1) > 0).all()


def test_an_undefended_classifier(classifier, x):
    defence = defend(classifier, vote=MeanLogits(2))
    verdict = defence.decide(x, 0)
    assert torch.allclose(verdict.logits, classifier(x), rtol=0, atol=1e-6)
    assert torch.allclose(verdict.draws[:, 0], verdict.draws[:, 1], rtol=0, atol=1e-6)


def test_verdicts_need_no_gradient_and_logits_have_one(classifier, purifier, x):
    defence = defend(classifier, purifier, MeanSoftmax(2))
    x.requires_grad_()
    assert not defence.decide(x, KEY).logits.requires_grad
    grad = torch.autograd.grad(defence.logits(x, KEY.rng(IDS)).logsumexp(dim=1).sum(), x)[0]
    assert (grad.flatten(1).norm(dim=1) > 0).all()


def test_the_adjoint_of_a_call_replaces_that_of_the_defence(classifier, net, x):
    counted = Counted(net)
    defence = defend(classifier, diffpure(counted, steps=2), adjoint=Skip())
    assert torch.equal(defence.logits(x, KEY.rng(IDS)), classifier(x))
    assert counted.rows == []
    exact = defence.logits(x, KEY.rng(IDS), Direct())
    assert torch.equal(defence.logits(x, KEY.rng(IDS), Identity()), exact)
    assert counted.rows == [5] * 4
    assert not torch.allclose(exact, classifier(x))


@pytest.mark.parametrize("adjoint", [Skip(), Surrogate(from_function(torch.zeros_like))], ids=["skip", "surrogate"])
def test_no_adjoint_changes_a_verdict(adjoint, classifier, purifier, x):
    plain, other = defend(classifier, purifier), defend(classifier, purifier, adjoint=adjoint)
    assert torch.equal(other.decide(x, KEY).draws, plain.decide(x, KEY).draws)
    with torch.no_grad():
        assert torch.equal(other.logits(x, KEY.rng(IDS)), plain.logits(x, KEY.rng(IDS)))


@pytest.mark.parametrize("rng", [3, Key(3), Key(3).rng(IDS)], ids=["seed", "key", "rng"])
def test_a_bound_defence_is_deterministic_and_differentiable(rng, classifier, purifier, x):
    bound = defend(classifier, purifier, Majority(2)).bind(rng)
    x.requires_grad_()
    first = bound(x)
    assert torch.equal(bound(x), first)
    assert torch.equal(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (first, bound(x))))


def test_a_bound_defence_is_independent_of_the_batch_given_ids(classifier, purifier, x):
    defence = defend(classifier, purifier, MeanLogits(2))
    whole = defence.bind(KEY.rng(IDS))(x)
    rows = torch.tensor([3, 1])
    assert torch.allclose(defence.bind(KEY.rng(IDS[rows]))(x[rows]), whole[rows], rtol=0, atol=1e-5)
    assert torch.allclose(defence.bind(KEY)(x[:2]), defence.bind(KEY)(x)[:2], rtol=0, atol=1e-5)


def test_a_bound_defence_refuses_another_number_of_images(classifier, x):
    with pytest.raises(UserError, match="bound to the noise of 5 images but was called with 2"):
        defend(classifier).bind(KEY.rng(IDS))(x[:2])


def test_as_a_module_every_call_has_fresh_noise_and_a_key_replays_the_calls(classifier, purifier, x):
    first, again = (defend(classifier, purifier, key=KEY) for _ in range(2))
    calls = [first(x) for _ in range(3)]
    assert all(torch.equal(again(x), call) for call in calls)
    assert not torch.allclose(calls[0], calls[1])
    assert not torch.allclose(calls[1], calls[2])
    other = defend(classifier, purifier, key=Key(72))
    assert not torch.allclose(other(x), calls[0])


def test_without_a_key_two_defences_share_no_noise(classifier, purifier, x):
    first, second = defend(classifier, purifier), defend(classifier, purifier)
    assert not torch.allclose(first(x), second(x))
    assert not torch.allclose(first.decide(x).logits, first.decide(x).logits)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 8, 8), torch.full((1, *SHAPE), 255.0)], ids=["no batch", "0..255"])
def test_what_is_no_batch_of_images_is_refused_by_both_faces(wrong, classifier, purifier):
    defence = defend(classifier, purifier)
    for call in (defence, lambda x: defence.decide(x, KEY)):
        with pytest.raises(UserError):
            call(wrong)


def test_a_plain_function_is_a_purifier(classifier, x):
    assert torch.equal(defend(classifier, squash).logits(x, KEY.rng(IDS)), classifier(squash(x)))
    pool = nn.AvgPool2d(3, 1, 1)
    assert torch.equal(defend(classifier, pool).logits(x, KEY.rng(IDS)), classifier(pool(x)))


def test_a_plain_function_is_a_classifier(purifier, x):
    def by_brightness(x: Tensor) -> Tensor:
        return torch.stack([x.mean(dim=(1, 2, 3)), 1 - x.mean(dim=(1, 2, 3))], dim=1)

    assert defend(by_brightness).decide(x, KEY).label.tolist() == [int(image.mean() < 0.5) for image in x]
    assert defend(by_brightness, purifier).decide(x, KEY).logits.shape == (5, 2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: diffpure(net, steps=2),
        lambda net: diffpure(net, steps=2, rounds=2),
        lambda net: adp_gated(net, threshold=1.0, steps=2),
        lambda net: when(lambda x: x.mean(dim=(1, 2, 3)) > 0, PURIFIERS["chain"](net)),
    ],
    ids=["diffpure", "rounds", "gated", "nested"],
)
def test_moving_a_defence_moves_the_denoisers_weights(wrap, net, classifier):
    net = copy.deepcopy(net)
    defence = defend(classifier, wrap(net)).to(torch.float64)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert {p.dtype for p in classifier.parameters()} == {torch.float64}
    assert len(list(defence.parameters())) == len([*net.parameters(), *classifier.parameters()])
    out = defence.decide(images(2, dtype=torch.float64), KEY)
    assert out.logits.dtype == torch.float64


def test_a_deep_copy_is_separate(net, classifier, x):
    defence = defend(classifier, diffpure(copy.deepcopy(net), steps=2))
    twin = copy.deepcopy(defence)
    assert torch.equal(twin.decide(x, KEY).logits, defence.decide(x, KEY).logits)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert not torch.equal(twin.decide(x, KEY).logits, defence.decide(x, KEY).logits)


def test_the_face_of_the_defence_is_that_of_a_classifier_in_any_attack(classifier, purifier, x):
    """A one-step attack written against any module that returns logits."""
    bound = defend(classifier, purifier, MeanSoftmax(2)).bind(KEY)
    x.requires_grad_()
    y = bound(x).argmax(dim=1)
    loss = nn.functional.cross_entropy(bound(x), y)
    step = 1e-3 * torch.autograd.grad(loss, x)[0].sign()
    with torch.no_grad():
        assert nn.functional.cross_entropy(bound((x + step).clamp(0, 1)), y) > loss


def test_a_bad_classifier_or_purifier_is_an_error(classifier):
    with pytest.raises(UserError, match="callable from images to logits, not int"):
        Defence(3)
    with pytest.raises(UserError, match="object is no purifier: it needs n_steps, init, step and readout"):
        Defence(classifier, object())
    with pytest.raises(UserError, match=r"function is no purifier: .*from_function\(f\)"):
        Defence(classifier, squash)
    with pytest.raises(UserError, match="str is no purifier"):
        defend(classifier, "diffpure")


def test_no_verdict_without_numbers(x):
    broken = Defence(lambda x: x.flatten(1)[:, :3] * torch.nan)
    assert broken.decide(x, 0).label.tolist() == [-1] * len(x)


def test_what_is_put_in_the_wrong_place_is_said(net, x):
    flat = nn.Flatten()
    with pytest.raises(UserError, match=r"That is a denoiser.*lustral\.diffpure"):
        defend(flat, net)
    for vote in (10, "majority"):
        with pytest.raises(UserError, match=r"A vote is an object such as lustral\.MeanLogits"):
            defend(flat, None, vote)
    with pytest.raises(UserError, match=r"function is no purifier.*lustral\.from_function"):
        purify(squash, x)
    with pytest.raises(UserError, match="no purifier"):
        next(trace(squash, x))


class Curious:
    """Keeps all noise that it is handed; ``effort`` makes lanes sort its rows."""

    n_steps = 1

    def __init__(self):
        self.handed = []

    def init(self, x, rng):
        self.handed.append(rng)
        return (x,)

    def step(self, i, state, rng):
        self.handed.append(rng)
        return (state[0] + 0.01 * rng.normal(state[0]),)

    def readout(self, state):
        return state[0]

    def effort(self, state):
        return None


@pytest.mark.parametrize("adjoint", [None, Direct(), Identity(), Surrogate])
@pytest.mark.parametrize("part", ["fresh", "all", "init", "step"])
def test_no_way_to_run_a_purifier_tells_it_where_it_is(adjoint, part, classifier, x):
    spy = Curious()
    adjoint = Surrogate(spy) if adjoint is Surrogate else adjoint
    defence = defend(classifier, spy, MeanLogits(2), adjoint=adjoint, lanes=3)
    victim = defence if part == "fresh" else KnownNoise(defence, Key(1), part)
    victim.logits(x.clone().requires_grad_(), KEY.rng(IDS)).sum().backward()
    with torch.no_grad():
        victim.logits(x, KEY.rng(IDS))
    defence(x), defence.bind(4)(x), defence.decide(x), purify(spy, x, 1), list(trace(spy, x, KEY))
    purify(spy, x, KEY.rng(IDS), adjoint=adjoint), Lanes(2)(spy, x, KEY.rng(IDS))
    assert len(spy.handed) > 20
    assert {type(rng) for rng in spy.handed} == {Veiled}


def test_searches_may_look_beside_the_range_of_images(classifier, x):
    """As attacks of other libraries do; 8-bit images are still refused."""
    assert defend(classifier)(x * 1.2 - 0.1).shape == (5, 3)
    with pytest.raises(UserError, match="divide by 255"):
        defend(classifier)(x * 255)
