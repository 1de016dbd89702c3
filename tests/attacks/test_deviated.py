"""The deviated reconstruction against plain autograd."""

import pytest
import torch
from torch import Tensor

from components import PURIFIERS, SHAPE, images, net_denoiser
from lustral.attacks.deviated import Deviated, Deviation
from lustral.attacks.gradients import Gradient, exact
from lustral.attacks.losses import cross_entropy
from lustral.core.adjoint import Checkpointed, Direct
from lustral.core.kernel import purify, trace
from lustral.core.noise import Key, audit
from lustral.defence import Defence

KEY = Key(17)
Y = torch.tensor([0, 1, 2])
WEIGHTS = Key(2).rng(3).normal(torch.empty(3, 64)).flatten(1)
every_kind = pytest.mark.parametrize("kind", ["sde-steps", "heun", "adp", "chain", "function"])


def classifier(x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1) @ WEIGHTS.T / 4)


def purifier(kind: str = "sde-steps"):
    return PURIFIERS[kind](net_denoiser())


def written_out(kind: str, x: Tensor, rng, weight: float) -> Tensor:
    """The gradient of loss + weight · |∂loss/∂image| · deviation, the length held fixed, by autograd."""
    leaf = x.clone().requires_grad_()
    readouts = list(trace(purifier(kind), leaf, rng.fold("purify")))
    apart = sum((z - leaf).square().flatten(1).mean(dim=1) for z in readouts[1:]) / len(readouts[1:])
    losses = cross_entropy(classifier(readouts[-1]), Y)
    (onto_image,) = torch.autograd.grad(losses.sum(), readouts[-1], retain_graph=True)
    total = losses + weight * onto_image.flatten(1).norm(dim=1) * apart
    (grad,) = torch.autograd.grad(total.sum(), leaf)
    return grad


@every_kind
def test_the_image_is_the_purifiers_bit_for_bit(kind):
    x, rng = images(3), KEY.rng(3)
    expected = purify(purifier(kind), x, rng, adjoint=Direct())
    assert torch.equal(Deviated()(purifier(kind), x, rng), expected)
    assert torch.equal(Deviated()(purifier(kind), x.clone().requires_grad_(), rng), expected)


@every_kind
@pytest.mark.parametrize("weight", [0.5, -3.0])
def test_the_gradient_is_that_of_the_loss_and_the_scaled_deviation(kind, weight):
    x, rng, victim = images(3), KEY.rng(3), Defence(classifier, purifier(kind))
    found = Gradient(Deviated(weight))(victim, x, Y, cross_entropy, rng)
    expected, plain = written_out(kind, x, rng, weight), exact()(victim, x, Y, cross_entropy, rng)
    assert torch.allclose(found.grad, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(found.grad, plain.grad, rtol=0.01, atol=1e-3 * float(expected.abs().max()))
    assert torch.equal(found.loss, plain.loss)
    assert torch.equal(found.wrong, plain.wrong)


@every_kind
def test_without_weight_it_is_the_exact_gradient(kind):
    x, rng, victim = images(3), KEY.rng(3), Defence(classifier, purifier(kind))
    found, plain = (Gradient(a)(victim, x, Y, cross_entropy, rng) for a in (Deviated(0.0), Checkpointed()))
    assert torch.allclose(found.grad, plain.grad, rtol=1e-5, atol=1e-7)


def test_the_weight_does_not_see_the_scale_of_the_loss():
    x, rng, victim = images(3), KEY.rng(3), Defence(classifier, purifier())
    one, ten = (
        Gradient(Deviated(2.0))(victim, x, Y, lambda out, y, c=c: c * cross_entropy(out, y), rng) for c in (1, 10)
    )
    assert torch.allclose(10 * one.grad, ten.grad, rtol=1e-4, atol=1e-6)


def test_the_deviation_is_the_mean_over_steps_of_the_squared_distance_to_the_input():
    x, rng = images(3), KEY.rng(3)
    image, apart = Checkpointed()(Deviation(purifier()), x, rng)
    readouts = torch.stack(list(trace(purifier(), x, rng)))
    assert torch.equal(image, readouts[-1])
    assert torch.allclose(apart, (readouts[1:] - x).square().mean(dim=(0, 2, 3, 4)), rtol=1e-5)
    assert readouts[1:].shape == (4, 3, *SHAPE)


def test_kept_graphs_change_nothing():
    x, rng, victim = images(3), KEY.rng(3), Defence(classifier, purifier())
    less, more = (
        Gradient(Deviated(1.0, Checkpointed(budget)), 2)(victim, x, Y, cross_entropy, rng) for budget in (0, 10**9)
    )
    assert torch.equal(less.grad, more.grad)


def test_the_noise_is_that_of_the_exact_gradient_and_is_met_once():
    met = []
    for adjoint in (Deviated(), Checkpointed()):
        with audit() as seen:
            Gradient(adjoint, 2)(Defence(classifier, purifier()), images(3), Y, cross_entropy, KEY.rng(3))
        met.append(seen)
    assert met[0] == met[1]
    assert set(met[0].values()) == {1}
