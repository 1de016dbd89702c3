"""Directions other than one exact gradient, each against its defining formula."""

from collections import Counter

import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from components import SHAPE, images, jitter, net_denoiser
from lustral.attacks.estimators import SPSA, Displacement, Growing, Joint, LowPass, SignVoted
from lustral.attacks.gradients import Gradient, Look, bpda, exact
from lustral.attacks.losses import cross_entropy, margin, toward
from lustral.core.adjoint import Checkpointed
from lustral.core.errors import UserError
from lustral.core.kernel import purify
from lustral.core.noise import Key, audit
from lustral.defence import Defence
from lustral.purifiers.compose import from_function
from lustral.purifiers.presets import diffpure

KEY = Key(14)
Y = torch.tensor([0, 1, 2, 0])
D = 64
WEIGHTS = Key(2).rng(3).normal(torch.empty(3, D))


def classifier(x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1) @ WEIGHTS.T)


def purifier():
    return diffpure(net_denoiser(), 0.1, "sde", steps=2)


def first(logits: Tensor, y: Tensor) -> Tensor:
    """A loss: the first logit."""
    return logits[:, 0]


W = Key(3).rng(1).normal(torch.empty(1, D)).flatten()
RISES = {
    "linear": (lambda x: (x.flatten(1) @ W)[:, None].expand(-1, 2), lambda x: W.expand(len(x), D)),
    "quadratic": (
        lambda x: ((x.flatten(1) * W).square().sum(dim=1))[:, None].expand(-1, 2),
        lambda x: 2 * W.square() * x.flatten(1),
    ),
}


@pytest.mark.parametrize("kind", RISES)
def test_spsa_is_the_gradient_on_average_with_the_known_cosine(kind):
    """ĝ = mean of (g·v)v over n signs v: E ĝ = g, E|ĝ|² = |g|²(d + n − 1)/n; differences of a quadratic are exact."""
    n, repeats = 8, 600
    logits, slope = RISES[kind]
    x = images(1).repeat(repeats, 1, 1, 1).double()
    victim = Defence(lambda v: logits(v.float()).double())
    look = SPSA(n, delta=0.5)(victim, x, torch.zeros(repeats, dtype=torch.long), first, KEY.rng(repeats))
    g, found = slope(x[:1].float())[0].double(), look.grad.flatten(1)
    spread = g.norm() * ((1 + 1 / D) / (n * repeats)) ** 0.5  # of a coordinate of the mean, at most
    assert ((found.mean(dim=0) - g).abs() < 4.5 * spread).all()
    assert float(found.square().sum(dim=1).mean() / g.square().sum()) == pytest.approx((D + n - 1) / n, rel=0.1)
    cosine = torch.nn.functional.cosine_similarity(found, g[None]).mean()
    assert float(cosine) == pytest.approx((n / (D + n - 1)) ** 0.5, rel=0.05)


def test_the_cosine_of_spsa_grows_with_its_samples():
    x = images(1).repeat(60, 1, 1, 1)
    victim, cosines = Defence(RISES["linear"][0]), []
    for n in (4, 64, 512):
        look = SPSA(n)(victim, x, torch.zeros(60, dtype=torch.long), first, KEY.rng(60))
        cosines.append(float(torch.nn.functional.cosine_similarity(look.grad.flatten(1), W[None]).mean()))
    assert cosines == pytest.approx([(n / (D + n - 1)) ** 0.5 for n in (4, 64, 512)], abs=0.05)


def test_every_query_of_spsa_has_noise_of_its_own():
    asked = []

    class Recorder:
        def logits(self, x, rng, adjoint=None):
            asked.append((x, rng.normal(x)))
            assert not torch.is_grad_enabled()
            return classifier(x)

    x = images(4)
    with audit() as seen:
        look = SPSA(5, delta=0.25)(Recorder(), x, Y, cross_entropy, KEY.rng(4))
    ((queries, noise),) = asked
    assert len(queries) == len(noise.flatten(1).unique(dim=0)) == 4 * 5 * 2
    assert set(seen.values()) == {1}
    steps = (queries.view(4, 5, 2, *SHAPE) - x[:, None, None]) / 0.25
    assert torch.allclose(steps[:, :, 0], -steps[:, :, 1], atol=1e-5)
    assert torch.allclose(steps.abs(), torch.tensor(1.0), atol=1e-5)
    losses = cross_entropy(classifier(queries), Y.repeat_interleave(10)).view(4, 10)
    assert torch.allclose(look.loss, losses.mean(dim=1), atol=1e-6)
    wrong = (classifier(queries).argmax(dim=1) != Y.repeat_interleave(10)).view(4, 10).float().mean(dim=1)
    assert torch.allclose(look.wrong, wrong)


def test_spsa_of_an_image_does_not_depend_on_its_batch():
    victim, x = Defence(classifier, purifier()), images(4)
    together = SPSA(3)(victim, x, Y, margin, KEY.rng(4))
    alone = SPSA(3)(victim, x[2:3], Y[2:3], margin, KEY.rng(torch.tensor([2])))
    assert torch.allclose(together.grad[2], alone.grad[0], atol=1e-3)
    assert torch.allclose(together.loss[2], alone.loss[0], atol=1e-6)


def test_spsa_climbs_towards_a_target():
    pairs = torch.tensor([[0, 1]] * 4)
    look = SPSA(400, delta=0.1)(Defence(classifier), images(4), pairs, toward, KEY.rng(4))
    expected = exact()(Defence(classifier), images(4), pairs, toward, KEY.rng(4))
    assert (torch.nn.functional.cosine_similarity(look.grad.flatten(1), expected.grad.flatten(1)) > 0.7).all()


@pytest.mark.parametrize("options", [{"samples": 0}, {"delta": 0.0}, {"delta": float("nan")}], ids=str)
def test_spsa_without_a_meaning_is_refused(options):
    with pytest.raises(UserError, match="SPSA"):
        SPSA(**options)


def test_sign_votes_are_the_majority_of_the_signs_of_single_draws():
    """Which is another direction than the sign of the mean gradient."""
    victim, x = Defence(classifier, purifier()), images(4)
    look = SignVoted(exact(5))(victim, x, Y, cross_entropy, KEY.rng(4))
    draws = [exact()(victim, x, Y, cross_entropy, KEY.rng(4, draw)) for draw in range(5)]
    up = torch.stack([draw.grad > 0 for draw in draws]).sum(dim=0)
    assert torch.equal(look.grad > 0, up >= 3)
    assert torch.equal(look.grad, (up - (5 - up)).float())
    mean = exact(5)(victim, x, Y, cross_entropy, KEY.rng(4))
    assert torch.allclose(look.loss, mean.loss, atol=1e-6)
    assert torch.allclose(look.wrong, mean.wrong)
    assert not torch.equal(look.grad.sign(), mean.grad.sign())


def test_joint_is_half_the_sign_of_each_direction():
    grads = torch.tensor([3.0, -3.0, 3.0, -3.0, 0.0, 2.0]).view(1, 1, 2, 3)
    along = torch.tensor([0.1, -0.1, -9.0, 9.0, 1.0, 0.0]).view(1, 1, 2, 3)
    estimator = Joint(
        lambda *_: Look(grads.clone(), torch.tensor([4.0]), torch.tensor([0.5])), lambda x, rng: along + 0 * x
    )
    look = estimator(None, torch.zeros(1, 1, 2, 3), Y[:1], cross_entropy, KEY.rng(1))
    assert look.grad.flatten().tolist() == [1, -1, 0, 0, 0.5, 0.5]
    assert (look.loss.item(), look.wrong.item()) == (4, 0.5)


def test_joint_full_goes_by_the_displacement_on_noise_that_its_gradient_does_not_meet():
    victim, x, rng = Defence(classifier, purifier()), images(4), KEY.rng(4)
    with audit() as seen:
        look = Joint(bpda(), Displacement(purifier(), 2))(victim, x, Y, cross_entropy, rng)
    assert set(seen.values()) == {1}
    grad = bpda()(victim, x, Y, cross_entropy, rng).grad
    displaced = Displacement(purifier(), 2)(x, rng.fold("direction"))
    assert torch.equal(look.grad, (grad.sign() + displaced.sign()) / 2)
    assert set(look.grad.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert not look.grad.requires_grad


def test_displacement_is_the_mean_purified_image_minus_the_image():
    x = images(4)
    purified = [purify(purifier(), x, KEY.rng(4, draw)) for draw in range(3)]
    assert torch.allclose(Displacement(purifier(), 3)(x, KEY.rng(4)), sum(purified) / 3 - x, atol=1e-6)
    assert torch.allclose(Displacement(purifier())(x, KEY.rng(4)), purified[0] - x, atol=1e-6)


def given(grad: Tensor):
    """An estimator that always answers with this gradient."""
    return lambda *_: Look(grad, torch.arange(len(grad)).float(), torch.zeros(len(grad)))


def filtered(grad: Tensor, keep: float) -> Tensor:
    return LowPass(given(grad), keep)(None, grad, None, cross_entropy, None).grad


@pytest.mark.parametrize("shape", [(8, 8), (6, 10)], ids=str)
@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_the_low_pass_keeps_the_lowest_frequencies_of_scipys_cosine_transform(shape, keep):
    grad = Key(5).rng(2).normal(torch.empty(2, 3, *shape))
    spectrum = dctn(grad.numpy(), axes=(2, 3), norm="ortho")
    rows, columns = (max(1, round(keep * n)) for n in shape)
    spectrum[:, :, rows:] = 0
    spectrum[..., columns:] = 0
    expected = torch.from_numpy(idctn(spectrum, axes=(2, 3), norm="ortho"))
    assert torch.allclose(filtered(grad, keep), expected, atol=1e-5)


def test_the_low_pass_is_a_projection_and_keeps_a_constant_image():
    grad = Key(5).rng(2).normal(torch.empty(2, 1, 8, 8))
    once = filtered(grad, 0.4)
    assert torch.allclose(filtered(once, 0.4), once, atol=1e-6)
    assert once.norm() < 0.8 * grad.norm()
    assert torch.allclose(filtered(torch.full((1, 1, 8, 8), 2.5), 0.1), torch.tensor(2.5), atol=1e-6)
    assert filtered(grad - grad.mean(dim=(2, 3), keepdim=True), 0.1).abs().max() < 1e-6


def test_the_low_pass_leaves_loss_and_success_alone():
    grad = torch.ones(3, 1, 4, 4)
    look = LowPass(given(grad))(None, grad, None, cross_entropy, None)
    assert look.loss.tolist() == [0, 1, 2]
    assert look.wrong.tolist() == [0, 0, 0]


@pytest.mark.parametrize("keep", [0.0, 1.1, float("nan")])
def test_a_low_pass_that_keeps_nothing_is_refused(keep):
    with pytest.raises(UserError, match="share|finite number"):
        LowPass(exact(), keep)


class Recorder:
    """A victim that remembers the gradient, loss and success of every draw, by image."""

    def __init__(self, victim: Defence):
        self.victim, self.seen, self.met = victim, {}, Counter()

    def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
        with audit() as met:
            out = self.victim.logits(x, rng, adjoint)
        self.met.update(met)
        looks = Gradient(adjoint)(self.victim, x, Y[rng.ids], cross_entropy, rng)
        for row, sample in enumerate(rng.ids.tolist()):
            self.seen.setdefault(sample, []).append(tuple(part[row].detach() for part in looks))
        return out


@pytest.mark.parametrize(
    ("agreement", "draws"), [(-1.1, {4}), (1.1, {32}), (0.5, {4, 8, 16, 32})], ids=["least", "most", "some"]
)
def test_growing_eot_is_the_mean_over_all_draws_that_it_took(agreement, draws):
    """Between ``least`` and ``most``, by image; no draw is met twice."""
    victim, x = Recorder(Defence(classifier, from_function(lambda x, rng: jitter(x, rng) * x))), images(4)
    look = Growing(Checkpointed(), least=4, most=40, agreement=agreement)(victim, x, Y, cross_entropy, KEY.rng(4))
    taken = [len(victim.seen[i]) for i in range(4)]
    assert set(taken) <= draws
    assert set(victim.met.values()) == {1}
    assert sum(victim.met.values()) == sum(taken)
    for i in range(4):
        for value, parts in zip(look, zip(*victim.seen[i], strict=True), strict=True):
            assert torch.allclose(value[i], torch.stack(parts).mean(dim=0), atol=1e-6)


def test_growing_eot_stops_at_once_for_a_deterministic_victim_and_goes_to_the_end_for_noise():
    """Image by image: the gradient of a bright image is noise, that of a dark one has none."""

    def shaken(x: Tensor, rng) -> Tensor:
        bright = (x.mean(dim=(1, 2, 3), keepdim=True) > 0.5).to(x)
        return x * (1 - bright) + x * bright * rng.normal(x)

    victim, x = Recorder(Defence(classifier, from_function(shaken))), torch.full((4, *SHAPE), 0.01)
    x[1] = x[3] = 0.9
    Growing(Checkpointed(), least=4, most=32, agreement=0.9)(victim, x, Y, cross_entropy, KEY.rng(4))
    assert [len(victim.seen[i]) for i in range(4)] == [4, 32, 4, 32]


def test_growing_eot_stops_where_the_two_halves_agree():
    """The rule written out with plain gradients, at the draws' own addresses."""
    victim, x, rng, agreement = Defence(classifier, purifier()), images(4), KEY.rng(4), 0.6
    recorder = Recorder(victim)
    Growing(Checkpointed(), least=2, most=16, agreement=agreement)(recorder, x, Y, cross_entropy, rng)
    taken = [len(recorder.seen[i]) for i in range(4)]
    for i in range(4):
        grads, n = [grad.flatten() for grad, *_ in recorder.seen[i]], 1
        while True:
            halves = torch.stack(grads[:n]).mean(dim=0), torch.stack(grads[n : 2 * n]).mean(dim=0)
            n *= 2
            if n == 16 or torch.nn.functional.cosine_similarity(*halves, dim=0) >= agreement:
                break
        assert taken[i] == n
    assert len(set(taken)) > 1


@pytest.mark.parametrize("options", [{"least": 3}, {"least": 0}, {"least": 8, "most": 4}], ids=str)
def test_growing_eot_without_two_halves_is_refused(options):
    with pytest.raises(UserError, match="even"):
        Growing(Checkpointed(), **options)
