"""A known answer: the exact attack reaches the worst case that exists, and BPDA does not where theory says it cannot.

Data are three Gaussians with the exact denoiser and the Bayes classifier of two classes. From class 0 the other class
is near but rare in one direction, (+, −) in the two halves of the image, and far but frequent in another, (+, +). To
the classifier, whose Gaussians are narrow, the near one is the rival, so BPDA darkens the lower half. Noise blurs
distances but not how frequent a Gaussian is: the purifier's Jacobian is the covariance of the posterior over the
Gaussians, which lies along (+, +), and turns the classifier's gradient so that the exact one brightens the lower half.
Logits depend on an image through the means of its two halves alone, so the worst case in the Linf ball is that of a
plane, where a grid finds it.
"""

import math

import pytest
import torch
from torch import Tensor

from lustral.attacks.apgd import APGD
from lustral.attacks.gradients import Gradient, Selection, bpda, exact
from lustral.attacks.losses import margin
from lustral.core.noise import Key
from lustral.core.threat import Linf
from lustral.defence import Defence
from lustral.denoisers.ideal import GaussianMixture
from lustral.evaluate.judge import judge
from lustral.purifiers.compose import from_function
from lustral.purifiers.presets import diffpure

EPS, SPREAD = 0.1, 0.04  # the attacker's bound, and the standard deviation of every Gaussian
UPPER = torch.cat([torch.ones(1, 4, 8), torch.zeros(1, 4, 8)], dim=1).double()
LOWER = 1 - UPPER
HOME = torch.full((1, 8, 8), 0.5).double()
MEANS = torch.stack([HOME, HOME + 0.1 * UPPER - 0.08 * LOWER, HOME + 0.2 * UPPER + 0.15 * LOWER])
WEIGHTS = torch.tensor([0.06, 1e-6, 0.939999]).double()
DATA = GaussianMixture(MEANS, torch.full((3,), SPREAD**2).double(), WEIGHTS)
X0, Y = HOME[None], torch.tensor([0])


def bayes(x: Tensor) -> Tensor:
    """The log posterior of the two classes, up to a constant."""
    distance = (x[:, None] - MEANS).square().flatten(2).sum(dim=2)
    each = WEIGHTS.log() - distance / (2 * SPREAD**2)
    return torch.stack([each[:, 0], each[:, 1:].logsumexp(dim=1)], dim=1)


def family(n: int = 41) -> Tensor:
    """Images [n², 1, 8, 8] of the plane: both halves shifted by up to eps."""
    shift = torch.linspace(-EPS, EPS, n).double()
    a, b = torch.meshgrid(shift, shift, indexing="ij")
    return HOME + a.reshape(-1, 1, 1, 1) * UPPER + b.reshape(-1, 1, 1, 1) * LOWER


def worst(defence: Defence) -> float:
    """The largest margin of a defence without noise over the plane."""
    images = family()
    rng = Key(0).rng(torch.zeros(len(images), dtype=torch.long))
    with torch.no_grad():
        return float(margin(defence.logits(images, rng), torch.zeros(len(images), dtype=torch.long)).max())


def reached(defence: Defence, gradient: Gradient, **options) -> float:
    attack = APGD(Linf(EPS), gradient, margin, steps=40, patience=0, **options)
    found = attack.run(defence, X0, Y, Key(1).rng(1))
    with torch.no_grad():
        return float(margin(defence.logits(found.x, Key(0).rng(1)), Y)[0])


SIGMA = 0.4
WITHOUT_NOISE = {
    "posterior mean": from_function(lambda x: DATA(x, x.new_full((len(x),), SIGMA))),
    "two posterior means": from_function(lambda x: DATA(x, x.new_full((len(x),), SIGMA)), steps=2),
}


@pytest.mark.parametrize("purifier", WITHOUT_NOISE.values(), ids=WITHOUT_NOISE.keys())
def test_the_exact_attack_reaches_the_worst_case_that_exists(purifier):
    defence = Defence(bayes, purifier)
    best = worst(defence)
    assert best > 0
    assert reached(defence, exact()) == pytest.approx(best, abs=1e-6 * abs(best) + 1e-6)


@pytest.mark.parametrize("purifier", WITHOUT_NOISE.values(), ids=WITHOUT_NOISE.keys())
def test_bpda_darkens_the_half_that_must_be_brightened_and_fails(purifier):
    """Its sign is that of the classifier's gradient at the purified image, the exact one's that of the worst case."""
    defence, rng = Defence(bayes, purifier), Key(0).rng(1)
    around, through = (gradient(defence, X0, Y, margin, rng).grad[0, 0] for gradient in (bpda(), exact()))
    assert (around[:4] > 0).all()
    assert (around[4:] < 0).all()
    assert (through > 0).all()
    assert reached(defence, bpda(), select=Selection()) < 0 < worst(defence)


def test_with_noise_the_exact_attack_reaches_the_best_mean_margin_of_the_plane():
    """One denoising step from t* = 0.22; the mean margin by quadrature over the two projections of the noise."""
    defence = Defence(bayes, diffpure(DATA, 0.22, "one-shot"))
    sigma = float(defence.purifier.schedule.sigma(torch.tensor([0.22]).double()))
    nodes, weights = hermite(24)
    noise = sigma / math.sqrt(32) * nodes  # of the mean over the 32 pixels of a half
    u, v = torch.meshgrid(noise, noise, indexing="ij")
    p = (weights[:, None] * weights).flatten()
    shaken = u.reshape(-1, 1, 1, 1) * UPPER + v.reshape(-1, 1, 1, 1) * LOWER

    def mean_margin(image: Tensor) -> float:
        seen = DATA(image + shaken, torch.full((len(shaken),), sigma).double())
        return float((margin(bayes(seen), torch.zeros(len(seen), dtype=torch.long)) * p).sum())

    best = max(mean_margin(image) for image in family(9))
    attack = APGD(Linf(EPS), exact(16), margin, steps=30, patience=0, select=Selection(32))
    found = attack.run(defence, X0, Y, Key(1).rng(1))
    assert mean_margin(found.x[0]) == pytest.approx(best, rel=1e-3)
    draws = judge(defence, found.x, Key(2).rng(1), 4000)[0]
    values = margin(draws, torch.zeros(len(draws), dtype=torch.long))
    error = float(values.std() / math.sqrt(len(values)))
    assert float(values.mean()) == pytest.approx(best, abs=4 * error)


def hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for means over a standard normal."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
