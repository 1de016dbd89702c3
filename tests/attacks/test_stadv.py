"""Bent images: what a flow does to them, what can be verified from them, and what the search finds."""

import pytest
import torch
from torch import Tensor

from components import SHAPE, images, jitter
from lustral.attacks.gradients import Selection, exact
from lustral.attacks.stadv import Flow, StAdv
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.defence import Defence
from lustral.evaluate.judge import verify
from lustral.purifiers.compose import from_function

KEY = Key(16)
W = Key(2).rng(1).normal(torch.empty(1, *SHAPE))[0]


def pixels(n: int = 3, *size: int) -> Tensor:
    return Key(3).rng(n).uniform(torch.empty(n, 2, *(size or (6, 7))))


def flows(x: Tensor, eps: float) -> Tensor:
    return eps * (2 * Key(4).rng(len(x)).uniform(x.new_empty(len(x), *x.shape[2:], 2)) - 1)


def constant(x: Tensor, right: float, down: float) -> Tensor:
    return torch.tensor([right, down]).expand(len(x), *x.shape[2:], 2)


def test_no_flow_bends_nothing():
    x = pixels()
    assert torch.allclose(Flow().bend(x, constant(x, 0, 0)), x, atol=1e-5)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-1, 0), (0, 1), (0, -2), (2, -1)])
def test_a_flow_by_whole_pixels_is_a_shift_that_repeats_the_edge(right, down):
    x = pixels()
    rows, columns = (torch.arange(6) + down).clamp(0, 5), (torch.arange(7) + right).clamp(0, 6)
    assert torch.allclose(Flow(2).bend(x, constant(x, right, down)), x[:, :, rows][..., columns], atol=1e-5)


def test_a_flow_between_pixels_is_their_bilinear_mean():
    x = pixels()
    inner = Flow().bend(x, constant(x, 0.25, 0.5))[..., :-1, :-1]
    top, below = (0.75 * part[..., :-1] + 0.25 * part[..., 1:] for part in (x[:, :, :-1], x[:, :, 1:]))
    assert torch.allclose(inner, (top + below) / 2, atol=1e-5)


def test_every_pixel_has_a_flow_of_its_own():
    x = pixels()
    flow = constant(x, 0, 0).clone()
    flow[1, 2, 3] = torch.tensor([1.0, -1.0])
    bent = Flow().bend(x, flow)
    assert torch.allclose(bent[1, :, 2, 3], x[1, :, 1, 4], atol=1e-5)
    assert ((bent - x).abs() > 1e-5).any(dim=1).sum() == 1


@pytest.mark.parametrize("eps", [1, 2, 3])
def test_projection_clips_to_the_pixels_of_the_neighbourhood(eps):
    """By a loop over every pixel's square."""
    x0, x = pixels(2), pixels(4)[2:]
    expected = x.clone()
    for n, c, i, j in torch.cartesian_prod(*(torch.arange(size) for size in x.shape)).tolist():
        near = x0[n, c, max(i - eps, 0) : i + eps + 1, max(j - eps, 0) : j + eps + 1]
        expected[n, c, i, j] = x[n, c, i, j].clamp(near.min(), near.max())
    found = Flow(eps).project(x, x0)
    assert torch.equal(found, expected)
    assert not torch.equal(found, x)
    assert torch.equal(Flow(eps).project(found, x0), found)


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_bent_images_are_verified_at_the_size_of_their_flow(radius):
    x0 = pixels()
    shifted, bent = Flow(3).bend(x0, constant(x0, radius, 0)), Flow(3).bend(x0, flows(x0, radius))
    assert Flow(3).distance(shifted, x0).tolist() == [radius] * 3
    assert (Flow(3).distance(bent, x0) <= radius).all()
    assert not verify(bent, x0, Flow(radius)).repaired.any()
    assert torch.allclose(Flow(3).project(bent, x0), bent, atol=1e-5)


def test_what_no_flow_within_eps_explains_is_outside_and_repaired():
    x0 = pixels()
    shifted = Flow().bend(x0, constant(x0, 3, 0))
    dimmed = x0.clone()
    dimmed[0, 0, 2, 2] = x0[0, 0].min() - 0.01
    for x, bad in ((shifted, [True] * 3), (dimmed, [True, False, False])):
        found = verify(x, x0, Flow(2))
        assert found.repaired.tolist() == bad
        assert (Flow(2).distance(x, x0) > 2).tolist() == bad
        assert (Flow(2).distance(found.x, x0) <= 2).all()
    assert Flow(2).distance(x0, x0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("eps", [0, -1, 1.5])
def test_a_flow_that_is_no_whole_number_of_pixels_is_refused(eps):
    with pytest.raises(UserError, match="whole number"):
        Flow(eps)


def linear(x: Tensor, w: Tensor = W, bias: float = 0.0) -> Tensor:
    """Two classes; class 1 leads by ⟨w, x − 1/2⟩ + bias."""
    lead = (w * (x - 0.5)).flatten(1).sum(dim=1) + bias
    return torch.stack([-lead / 2, lead / 2], dim=1)


class Seen:
    """A victim that remembers the images that it sees."""

    def __init__(self, victim: Defence):
        self.victim, self.x = victim, []

    def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
        self.x.append(x.detach().clone())
        return self.victim.logits(x, rng, adjoint)


@pytest.mark.parametrize("eps", [1, 2])
def test_a_linear_classifier_on_a_ramp_is_brought_to_its_worst_case(eps):
    """Every pixel takes its largest or least neighbour, by the sign of its weight; on a ramp no hill lies between.

    At the very edge, outside of which there is no gradient, the classifier does not look.
    """
    w = W.clone()
    w[..., [0, -1]] = w[:, [0, -1]] = 0
    ramp = torch.tensor([0.1, 0.12, 0.3, 0.35, 0.6, 0.65, 0.85, 0.9])
    x0 = torch.stack([ramp.expand(SHAPE), ramp.flip(0).view(8, 1).expand(SHAPE)])
    high, low = x0.clone(), x0.clone()
    for k in range(1, eps + 1):
        ahead, behind = (torch.arange(8) + k).clamp_max(7), (torch.arange(8) - k).clamp_min(0)
        for shifted in (x0[..., ahead], x0[..., behind], x0[:, :, ahead], x0[:, :, behind]):
            high, low = torch.maximum(high, shifted), torch.minimum(low, shifted)
    worst, clean = ((w * (x - 0.5)).flatten(1).sum(dim=1) for x in (torch.where(w > 0, high, low), x0))
    attack = StAdv(Flow(eps), exact(), steps=60, patience=0)
    found = attack.run(Defence(lambda x: linear(x, w)), x0, torch.zeros(2, dtype=torch.long), KEY.rng(2))
    assert (worst - clean > 1).all()
    assert torch.allclose(found.loss, worst, atol=1e-3)
    assert found.looks.tolist() == [attack.looks] * 2 == [60] * 2


def test_a_classifier_that_reads_the_place_of_a_stripe_falls_and_one_that_counts_light_does_not():
    stripe = torch.zeros(SHAPE)
    stripe[..., 3] = 1
    x0, y = stripe[None], torch.tensor([0])
    place = Defence(lambda x: torch.stack([x[:, 0, :, 3].mean(dim=1), 0.6 * x[:, 0, :, 4].mean(dim=1)], dim=1))
    black = Defence(lambda x: torch.stack([x.mean(dim=(1, 2, 3)) * 0 + 0.5, x.amin(dim=(1, 2, 3))], dim=1))
    assert StAdv(Flow(), exact()).run(place, x0, y, KEY.rng(1)).wrong.tolist() == [1]
    assert StAdv(Flow(), exact()).run(black, x0, y, KEY.rng(1)).wrong.tolist() == [0]


def test_every_image_that_the_victim_sees_and_every_candidate_pass_the_judge_unrepaired():
    """Under noise, with selection on draws of its own; all-or-nothing pixels leave no slack."""
    x0 = pixels(3, 8, 8)[:, :1].round()
    victim = Seen(Defence(linear, from_function(jitter)))
    attack = StAdv(Flow(2), exact(2), steps=12, patience=0, select=Selection(2))
    found = attack.run(victim, x0, torch.tensor([0, 1, 0]), KEY.rng(3))
    assert not verify(found.x, x0, Flow(2)).repaired.any()
    assert (Flow(2).distance(found.x, x0) > 0).all()
    assert len(victim.x) == 12 + 13
    for x in victim.x:
        assert not verify(x[::2], x0, Flow(2)).repaired.any()


def test_rounding_in_large_images_does_not_carry_a_candidate_outside():
    """Interpolation 224 pixels wide is off by 1e-5 of a pixel, which at a hard edge is more than the judge's slack."""
    x0 = pixels(1, 224, 224)[:, :1].round()
    bent = Flow().bend(x0, constant(x0, 1, 1))
    assert verify(bent, x0, Flow()).repaired.all(), "or this test tests nothing"
    victim = Defence(lambda x: torch.stack([-x.sum(dim=(1, 2, 3)), x.sum(dim=(1, 2, 3))], dim=1))
    found = StAdv(Flow(), exact(), steps=3).run(victim, x0, torch.tensor([0]), KEY.rng(1))
    assert not verify(found.x, x0, Flow()).repaired.any()


def test_images_that_leave_do_not_change_the_others():
    x0, y, rng = images(4), torch.zeros(4, dtype=torch.long), KEY.rng(4)
    reached = StAdv(Flow(), exact(), steps=8, patience=0).run(Defence(linear), x0, y, rng).loss
    victim = Defence(lambda x: linear(x, bias=-float(reached.median()) - 0.01))  # the two that reach most will fall
    attack = StAdv(Flow(), exact(), steps=8, patience=1)
    together, stay = attack.run(victim, x0, y, rng), (reached <= reached.median()).nonzero()[:, 0]
    assert (together.wrong == 0).nonzero()[:, 0].tolist() == stay.tolist()
    assert (together.looks < 8).sum() > 0
    alone = attack.run(victim, x0[stay], y[stay], rng[stay])
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a[stay], b, atol=1e-5)
