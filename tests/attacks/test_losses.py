import math

import pytest
import torch

from lustral.attacks.losses import LOSSES, cross_entropy, dlr, dlr_toward, margin, reach, toward, truth
from lustral.core.errors import UserError
from lustral.core.noise import Key

Y = torch.tensor([0, 3, 1, 4, 2, 2])
PAIRS = torch.stack([Y, (Y + 1) % 5], dim=1)


def rows() -> list[tuple[list[float], int]]:
    return list(zip(logits().tolist(), Y.tolist(), strict=True))


def logits(classes: int = 5) -> torch.Tensor:
    return 3 * Key(1).rng(len(Y)).normal(torch.empty(len(Y), classes, dtype=torch.float64))


def test_cross_entropy_is_minus_the_log_of_the_softmax():
    pairs = zip(logits().tolist(), Y.tolist(), strict=True)
    expected = [math.log(sum(math.exp(v) for v in row)) - row[y] for row, y in pairs]
    assert cross_entropy(logits(), Y).tolist() == pytest.approx(expected, rel=1e-12)


def test_margin_is_the_best_other_logit_minus_the_true_one():
    expected = [max(v for k, v in enumerate(row) if k != y) - row[y] for row, y in rows()]
    assert margin(logits(), Y).tolist() == pytest.approx(expected, rel=1e-12)


def test_margin_is_positive_exactly_where_the_label_is_wrong():
    wrong = logits().argmax(dim=1) != Y
    assert 0 < int(wrong.sum()) < len(Y)
    assert torch.equal(margin(logits(), Y) > 0, wrong)


def test_dlr_is_equation_6_of_croce_and_hein():
    expected = []
    for row, y in rows():
        first, _, third, *_ = sorted(row, reverse=True)
        expected.append(-(row[y] - max(v for k, v in enumerate(row) if k != y)) / (first - third))
    assert dlr(logits(), Y).tolist() == pytest.approx(expected, rel=1e-12)


def test_dlr_sees_neither_the_scale_nor_the_level_of_the_logits():
    assert torch.allclose(dlr(7 * logits() - 2, Y), dlr(logits(), Y), rtol=1e-12)


def test_targeted_losses_by_hand():
    """DLR towards a target is −(z_y − z_t) / (z_π1 − (z_π3 + z_π4)/2), equation 7 of Croce and Hein."""
    logits = torch.tensor([[5.0, 1, 3, -1, 2], [0, 4, 1, 7, 3], [0, 4, 1, 7, 3], [1, 2, 3, 4, 6]])
    pairs = torch.tensor([[0, 2], [1, 3], [3, 0], [0, 4]])
    assert toward(logits, pairs).tolist() == [-2, 3, -7, 5]
    # Leads of the first over the mean of the third and fourth: 5 − (2 + 1)/2, 7 − (3 + 1)/2 twice, 6 − (3 + 2)/2.
    assert dlr_toward(logits, pairs).tolist() == pytest.approx([-2 / 3.5, 3 / 5, -7 / 5, 5 / 3.5])


def test_the_reach_of_a_target_is_its_lead_over_all_others():
    expected = [
        row[t] - max(v for k, v in enumerate(row) if k != t)
        for (row, _), t in zip(rows(), PAIRS[:, 1].tolist(), strict=True)
    ]
    assert reach(logits(), PAIRS).tolist() == pytest.approx(expected, rel=1e-12)


def test_targeted_dlr_of_three_classes_takes_the_lead_over_the_last():
    assert dlr_toward(torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([[1, 0]])).tolist() == pytest.approx([-3 / 3.0])


def test_targeted_dlr_sees_neither_the_scale_nor_the_level_of_the_logits():
    assert torch.allclose(dlr_toward(7 * logits() - 2, PAIRS), dlr_toward(logits(), PAIRS), rtol=1e-12)


def test_the_truth_of_labels_and_of_pairs():
    assert torch.equal(truth(Y), Y)
    assert torch.equal(truth(PAIRS), Y)


@pytest.mark.parametrize("loss", [toward, dlr_toward])
def test_a_row_of_a_targeted_loss_does_not_see_its_neighbours(loss):
    alone = torch.cat([loss(logits()[i : i + 1], PAIRS[i : i + 1]) for i in range(len(Y))])
    assert torch.equal(loss(logits(), PAIRS), alone)


@pytest.mark.parametrize("loss", [toward, dlr_toward])
def test_the_gradient_of_a_targeted_loss_is_finite_at_saturated_and_tied_logits(loss):
    edge = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], requires_grad=True)
    loss(edge, torch.tensor([[0, 2], [1, 0]])).sum().backward()
    assert torch.isfinite(edge.grad).all()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_row_does_not_see_its_neighbours(loss):
    whole = loss(logits(), Y)
    alone = torch.cat([loss(logits()[i : i + 1], Y[i : i + 1]) for i in range(len(Y))])
    assert torch.equal(whole, alone)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_the_gradient_is_finite_at_saturated_and_tied_logits(loss):
    edge = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], requires_grad=True)
    loss(edge, torch.tensor([0, 1])).sum().backward()
    assert torch.isfinite(edge.grad).all()


def test_the_ratio_of_two_classes_is_the_margin_and_has_a_gradient():
    """(Croce and Hein's is ±1 there.)"""
    logits = torch.tensor([[0.3, -0.4], [0.1, 0.9]], requires_grad=True)
    y, pairs = torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 0]])
    assert torch.equal(dlr(logits, y), margin(logits, y))
    assert torch.equal(dlr_toward(logits, pairs), toward(logits, pairs))
    assert torch.autograd.grad(dlr(logits, y).sum(), logits)[0].abs().min() > 0


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr, lambda logits, y: dlr(logits[:, :2], y % 2)])
def test_a_loss_without_targets_says_so(loss):
    with pytest.raises(UserError, match=r"climbs `losses\.toward`"):
        loss(logits(), PAIRS)


@pytest.mark.parametrize("loss", [toward, dlr_toward])
def test_a_targeted_loss_asks_for_targets(loss):
    with pytest.raises(UserError, match=r"put the search into Targeted\(\.\.\.\)"):
        loss(logits(), Y)
