"""Attacks on chosen noise levels: what flows through them and what does not."""

import pytest
import torch

from components import gaussian_mixture, images, net_denoiser, sample_specific
from lustral.attacks.gradients import Gradient
from lustral.attacks.levels import HeldLevel, LoweredNorm
from lustral.attacks.losses import cross_entropy
from lustral.attacks.pgd import PGD
from lustral.core.adjoint import Checkpointed
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.core.threat import Linf
from lustral.defence import defend
from lustral.purifiers.presets import diffpure
from lustral.purifiers.rounds import Rounds
from lustral.samplers import DDIM

KEY, SHAPE = Key(4), (1, 4, 4)


@pytest.fixture
def purifier() -> Rounds:
    return sample_specific(diffpure(gaussian_mixture(SHAPE, torch.float64), 0.1, DDIM(steps=3)))


def pulled(adjoint, purifier, x, rng):
    """The output, and the gradient of a weighted sum of it."""
    leaf = x.clone().requires_grad_()
    out = adjoint(purifier, leaf, rng)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), torch.autograd.grad((weight * out).sum(), leaf)[0], weight


def test_a_held_level_is_that_of_the_image_and_passes_no_gradient(purifier):
    x, rng = images(3, SHAPE, torch.float64), KEY.rng(3)
    out, grad, _ = pulled(HeldLevel(), purifier, x, rng)
    wanted, exact, _ = pulled(Checkpointed(), purifier, x, rng)
    assert torch.equal(out, wanted)
    seen = purifier.measure(x, rng.fold("init", "measure"))
    fixed = Rounds(purifier.stages, lambda x, rng: seen)
    torch.testing.assert_close(grad, pulled(Checkpointed(), fixed, x, rng)[1])
    assert (grad - exact).norm() > 1e-3 * exact.norm()


def test_the_norms_gradient_enters_with_the_length_of_the_losss(purifier):
    x, rng = images(3, SHAPE, torch.float64), KEY.rng(3)
    _, exact, upstream = pulled(Checkpointed(), purifier, x, rng)
    _, found, _ = pulled(LoweredNorm(0.3), purifier, x, rng)
    leaf = x.clone().requires_grad_()
    log = purifier.measure(leaf, rng.fold("init", "measure")).log().sum()
    down = -torch.autograd.grad(log, leaf)[0]
    length = upstream.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(found, exact + 0.3 * length * down)


def test_an_attack_that_lowers_the_norm_lowers_it():
    purifier = sample_specific(diffpure(net_denoiser(), 0.1, DDIM(steps=2)))
    defence = defend(lambda x: x.flatten(1)[:, :3] * 4, purifier)
    x, y, rng = images(4), torch.tensor([0, 1, 2, 0]), KEY.rng(4)
    norms = []
    for adjoint in (Checkpointed(), LoweredNorm(1.0)):
        attack = PGD(Linf(0.05), Gradient(adjoint), cross_entropy, steps=8)
        attacked = attack.run(defence, x, y, rng).x
        norms.append(purifier.measure(attacked, rng).mean())
    assert norms[1] < 0.98 * norms[0]


@pytest.mark.parametrize("adjoint", [HeldLevel(), LoweredNorm()])
def test_levels_that_are_all_alike_cannot_be_attacked(adjoint):
    with pytest.raises(UserError, match="wrap the purifier in SSNI"):
        adjoint(diffpure(net_denoiser(), 0.1, DDIM(steps=2)), images(2), KEY.rng(2))
