import math

import pytest
import torch

from lustral.attacks.losses import LOSSES, cross_entropy, dlr, margin
from lustral.core.noise import Key

Y = torch.tensor([0, 3, 1, 4, 2, 2])


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


def test_dlr_of_two_classes_takes_the_spread_of_both():
    two = logits(2)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    assert torch.allclose(dlr(two, y).abs(), torch.ones(len(y), dtype=torch.float64))
    assert torch.equal(dlr(two, y).sign(), margin(two, y).sign())


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
