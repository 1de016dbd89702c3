"""docs/which-gradient.md in small: on an exact score the continuous adjoint and BPDA are wrong where data are sharp."""

import torch
from benchmarks.which_gradient import measure, mixture

from lustral.core.kernel import purify
from lustral.core.noise import Key
from lustral.purifiers.presets import diffpure


def test_the_continuous_adjoint_is_right_on_wide_modes_and_wrong_on_sharp_ones():
    wide, sharp = (dict(measure(variance, "sde", images=8)) for variance in (1e-2, 1e-4))
    assert wide["continuous adjoint"].cosine > 0.99
    assert sharp["continuous adjoint"].cosine < 0.8
    assert sharp["continuous adjoint"].signs < 0.85


def test_bpda_is_far_too_long_and_misses_the_direction():
    found = dict(measure(1e-3, "sde", images=8))["BPDA"]
    assert found.length > 10
    assert found.cosine < 0.95


def test_the_exact_gradient_is_that_of_a_finite_difference():
    data, rng = mixture(1e-3), Key(1).rng(2)
    purifier = diffpure(data, 0.1)
    x = data.means[:2].clone().requires_grad_()
    seed, direction = rng.fold("seed").normal(x), rng.fold("direction").normal(x)
    (grad,) = torch.autograd.grad(purify(purifier, x, rng), x, seed)
    step = 1e-5
    ahead, behind = (purify(purifier, (x + s * step * direction).detach(), rng) for s in (1, -1))
    slope = ((ahead - behind) / (2 * step) * seed).sum()
    assert torch.isclose(slope, (grad * direction).sum(), rtol=1e-4)
