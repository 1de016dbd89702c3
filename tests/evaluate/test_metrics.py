import math
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from scipy import stats

from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.core.vote import Abstain, Majority, MeanLogits, MeanSoftmax, Single
from lustral.evaluate import metrics
from lustral.evaluate.published import published

IMAGES, DRAWS, CLASSES = 7, 6, 4
Y = torch.tensor([0, 1, 2, 3, 0, 1, 2])


def logits() -> torch.Tensor:
    """Some images mostly right, some mostly wrong."""
    lift = torch.nn.functional.one_hot(Y, CLASSES)[:, None] * torch.linspace(0, 2.5, IMAGES).view(-1, 1, 1)
    return Key(1).rng(IMAGES).normal(torch.empty(IMAGES, DRAWS, CLASSES)) + lift


def table() -> torch.Tensor:
    return metrics.right(logits(), Y)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (3, 20), (17, 64), (64, 64), (250, 500)])
def test_wilson_is_scipys(k, n):
    found, expected = metrics.wilson(k / n, n), stats.binomtest(k, n).proportion_ci(method="wilson")
    assert found.value == k / n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilsons_ends_are_where_the_score_test_rejects():
    p, n = 0.3, 40
    for end in metrics.wilson(p, n)[1:]:
        assert abs(p - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_wilson_takes_other_confidences():
    narrow, wide = metrics.wilson(0.4, 30, 0.5), metrics.wilson(0.4, 30, 0.99)
    assert wide.low < narrow.low < 0.4 < narrow.high < wide.high
    expected = stats.binomtest(12, 30).proportion_ci(0.99, method="wilson")
    assert wide[1:] == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_right_and_margins_are_what_loops_say():
    for i in range(IMAGES):
        for d in range(DRAWS):
            row, y = logits()[i, d].tolist(), int(Y[i])
            assert bool(table()[i, d]) == (row.index(max(row)) == y)
            best = max(v for k, v in enumerate(row) if k != y)
            assert float(metrics.margins(logits(), Y)[i, d]) == pytest.approx(row[y] - best, abs=1e-6)
    assert 0 < int(table().sum()) < IMAGES * DRAWS


def test_average_is_the_mean_over_images_with_images_as_trials():
    found = metrics.average(table())
    share = sum(sum(row) / DRAWS for row in table().tolist()) / IMAGES
    assert found == pytest.approx(metrics.wilson(share, IMAGES))


@pytest.mark.parametrize("m", range(1, DRAWS + 1))
def test_worst_of_is_the_mean_over_all_choices_of_draws(m):
    choices = list(combinations(range(DRAWS), m))
    expected = [sum(all(row[d] for d in chosen) for chosen in choices) / len(choices) for row in table().tolist()]
    found = metrics.worst_of(table(), m)
    assert found.value == pytest.approx(sum(expected) / IMAGES, abs=1e-12)
    assert found == pytest.approx(metrics.wilson(found.value, IMAGES))


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_worst_of_is_unbiased(p):
    """Its mean over all tables of 5 draws, weighted by their chances, is p^m; the plug-in (f/n)^m would be above it."""
    m, n = 3, 5
    mean = 0.0
    for bits in range(2**n):
        row = torch.tensor([[bool(bits >> d & 1) for d in range(n)]])
        good = int(row.sum())
        mean += p**good * (1 - p) ** (n - good) * metrics.worst_of(row, m).value
    assert mean == pytest.approx(p**m, abs=1e-12)


@pytest.mark.parametrize("m", [0, -1, DRAWS + 1])
def test_worst_of_needs_as_many_draws(m):
    with pytest.raises(UserError, match="draws"):
        metrics.worst_of(table(), m)


def majority(block: list[list[float]]) -> int:
    """The class that most draws name; a tie goes to the larger mean probability."""
    said = [row.index(max(row)) for row in block]
    probability = torch.tensor(block).softmax(dim=1).mean(dim=0).tolist()
    return max(range(CLASSES), key=lambda c: (said.count(c), probability[c]))


def mean_logits(block: list[list[float]]) -> int:
    means = [sum(row[c] for row in block) for c in range(CLASSES)]
    return means.index(max(means))


def mean_softmax(block: list[list[float]]) -> int:
    return int(torch.tensor(block).softmax(dim=1).mean(dim=0).argmax())


@pytest.mark.parametrize(
    ("vote", "rule"),
    [(Majority, majority), (MeanLogits, mean_logits), (MeanSoftmax, mean_softmax)],
    ids=["majority", "mean logits", "mean softmax"],
)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_votes_are_taken_in_blocks(vote, rule, k):
    """Draws that do not fill a block are not used: 4 of 6 draws are one block of 4."""
    found = metrics.voted(logits(), Y, vote(k))
    rows = logits().tolist()
    expected = [[rule(rows[i][b * k : b * k + k]) == int(Y[i]) for b in range(DRAWS // k)] for i in range(IMAGES)]
    assert found.tolist() == expected
    assert 0 < int(found.sum()) < found.numel()


def test_a_single_vote_is_the_table_of_draws():
    assert torch.equal(metrics.voted(logits(), Y, Single()), table())


def test_an_abstention_is_wrong():
    everything = metrics.voted(logits(), Y, Abstain(MeanSoftmax(2), 1.0))
    assert not everything.any()
    some = metrics.voted(logits(), Y, Abstain(MeanSoftmax(2), 0.3))
    plain = metrics.voted(logits(), Y, MeanSoftmax(2))
    assert int(some.sum()) < int(plain.sum())
    assert not (some & ~plain).any()


def test_mean_logit_of_averages_its_blocks():
    expected = metrics.average(metrics.voted(logits(), Y, MeanLogits(2)))
    assert metrics.mean_logit_of(logits(), Y, 2) == expected


def test_a_vote_needs_as_many_draws():
    with pytest.raises(UserError, match="judge with more draws"):
        metrics.voted(logits(), Y, Majority(DRAWS + 1))


@pytest.mark.parametrize(
    ("only_a", "only_b", "both", "neither"), [(5, 1, 3, 2), (0, 4, 2, 0), (7, 7, 0, 1), (1, 0, 0, 0)]
)
def test_mcnemar_is_the_exact_binomial_test_of_the_disagreements(only_a, only_b, both, neither):
    a = torch.tensor([1] * only_a + [0] * only_b + [1] * both + [0] * neither).bool()
    b = torch.tensor([0] * only_a + [1] * only_b + [1] * both + [0] * neither).bool()
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    found = metrics.mcnemar(a, b)
    assert found[:2] == (only_a, only_b)
    assert found.p == pytest.approx(min(1.0, 2 * tail), abs=1e-12)


def test_systems_that_never_disagree_are_not_told_apart():
    a = torch.tensor([True, False, True])
    assert metrics.mcnemar(a, a) == (0, 0, 1.0)


def test_mcnemar_compares_the_same_images():
    with pytest.raises(UserError, match="same images"):
        metrics.mcnemar(torch.ones(3).bool(), torch.ones(4).bool())


def test_an_interval_needs_an_image():
    with pytest.raises(UserError, match="at least one image"):
        metrics.wilson(0.5, 0)


def right_table(shares: list[float], draws: int = 40) -> torch.Tensor:
    """Images whose first draws are right."""
    return torch.stack([torch.arange(draws) < round(share * draws) for share in shares])


def logits_of(right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of three classes that give such a table for label 1, with margins of their own."""
    size = 1 + Key(1).rng(len(right)).uniform(torch.empty(right.shape))
    logits = torch.zeros(*right.shape, 3)
    logits[..., 1] = torch.where(right, size, -size)
    return logits, torch.ones(len(right), dtype=torch.long)


def test_risks_are_votes_and_resubmissions_from_the_same_draws():
    logits, y = logits_of(right_table([1.0, 0.8, 0.3]))
    found = {(risk.rule, risk.k, risk.m): risk.accuracy for risk in metrics.risks(logits, y)}
    assert found["single", 1, 1] == pytest.approx(metrics.average(metrics.right(logits, y)))
    assert found["single", 1, 10] == pytest.approx(metrics.worst_of(metrics.right(logits, y), 10))
    assert found["majority", 5, 1] == metrics.majority_of(logits, y, 5)
    assert found["majority", 5, 5] == metrics.worst_of(metrics.voted(logits, y, Majority(5)), 5)
    assert found["mean logits", 20, 1] == metrics.mean_logit_of(logits, y, 20)
    assert ("majority", 20, 5) not in found, "two decisions cannot tell the worst of five"
    for (rule, k, m), accuracy in found.items():
        assert accuracy.value <= found[rule, k, 1].value + 1e-12, (rule, k, m)


def test_the_bootstrap_interval_is_that_of_the_mean():
    """For many images it is normal about the mean, with the standard error of the mean."""
    values = Key(3).rng(1).uniform(torch.empty(1, 400))[0]
    found = metrics.bootstrap(values)
    error = float(values.std() / 400**0.5)
    assert found.value == pytest.approx(values.mean().item())
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.2 * error)
    assert metrics.bootstrap(values) == found


def test_sign_flips_are_exact_for_few_images_and_calibrated_for_many():
    assert metrics.sign_flip(torch.tensor([-1.0, -2.0, -3.0])) == 1 / 8
    assert metrics.sign_flip(torch.tensor([1.0, 2.0, 3.0])) == 1.0
    assert metrics.sign_flip(torch.tensor([-3.0, 1.0])) == 2 / 4
    many = Key(5).rng(200).normal(torch.empty(200, 30))
    chances = torch.tensor([metrics.sign_flip(row) for row in many])
    assert 0.005 <= float((chances < 0.05).double().mean()) <= 0.11
    assert metrics.sign_flip(many[0] - 2) < 0.001


def test_the_anytime_interval_holds_at_every_size_at_once():
    """Of 200 sequences, the intervals after 10, 20, … images all contain the truth in at least 95 % (up to chance)."""
    truth, missed = 0.3, 0
    for row in Key(6).rng(200).uniform(torch.empty(200, 100)):
        values = (row < truth).double().tolist()
        found = [metrics.sequence(values[:n]) for n in range(10, 101, 30)]
        missed += not all(one.low <= truth <= one.high for one in found)
    assert missed / 200 <= 0.08
    wide, narrow = metrics.sequence(values[:20]), metrics.sequence(values)
    assert narrow.high - narrow.low < wide.high - wide.low
    assert narrow.high - narrow.low < 0.45


def test_looks_are_counted_as_those_who_judge_while_they_optimise_do():
    wrongs = [np.array([0.0, 0.1, 0.0]), np.array([0.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])]
    assert metrics.looked(wrongs).value == pytest.approx(1 / 3)
    assert metrics.looked(wrongs, 2).value == pytest.approx(2 / 3)
    assert metrics.looked(wrongs, 1).value == 1


def test_accuracy_per_class_is_the_average_of_its_images():
    right, y = right_table([1.0, 0.5, 0.0]), torch.tensor([4, 4, 7])
    found = metrics.per_class(right, y)
    assert {label: value.value for label, value in found.items()} == {4: 0.75, 7: 0.0}


def test_others_metrics_are_recomputed_from_the_same_draws():
    """Three images: right in 40, 36 and 10 of 40 draws; the attack saw 1, 6 and 9 of 10 wrong at its worst looks."""
    right = right_table([1.0, 0.9, 0.25])
    logits, y = logits_of(right)
    wrongs = [np.array([0.0, 0.1]), np.array([0.6, 0.0]), np.array([0.9, 0.5])]
    found = {(item.source, item.name): item.value for item in published(logits, y, wrongs)}
    assert found["DiffHammer", "Avg.Rob"].value == pytest.approx(1.0)  # of the first 10 draws
    expected = (1 + comb(36, 10) / comb(40, 10) + comb(10, 10) / comb(40, 10)) / 3
    assert found["DiffHammer", "Wor.Rob (10)"].value == pytest.approx(expected)
    assert found["DiffBreak", "Wor.Rob"].value == 0
    assert found["DiffBreak", "MV.Rob"].value == pytest.approx(1 / 3)
    assert found["Fixed-AutoAttack", "mean of 20"].value == pytest.approx((20 + 20 + 10) / 60)
    assert found["AutoAttack (rand)", "one draw"].value == 1
    assert all(item.definition for item in published(logits, y, wrongs))


def test_others_metrics_are_left_out_where_draws_or_looks_are_missing():
    logits, y = logits_of(right_table([1.0], draws=5))
    found = {(item.source, item.name): item.value for item in published(logits, y, [])}
    assert (
        found["DiffHammer", "Avg.Rob"]
        is found["DiffBreak", "Wor.Rob"]
        is found["Fixed-AutoAttack", "mean of 20"]
        is None
    )


def test_nan_is_never_right():
    """Though torch.argmax takes it for the largest, and class 0 would stay robust to whatever breaks a defence."""
    logits = torch.tensor([[[2.0, 1.0], [torch.nan, torch.nan]], [[2.0, torch.nan], [2.0, 1.0]]])
    y = torch.zeros(2, dtype=torch.long)
    assert metrics.right(logits, y).tolist() == [[True, False], [False, True]]
    assert metrics.voted(logits, y, MeanLogits(2)).tolist() == [[False], [False]]


def test_the_anytime_interval_of_sorted_values_says_nothing():
    """They are no random order: every mean is refuted, or their own is, and the interval must not look tight."""
    by_class = [float(i < right) for right in (45, 40, 35, 30, 25) for i in range(50)]
    for values in ([1.0] * 500 + [0.0] * 500, [1.0] * 64 + [0.0] * 64, sorted(by_class)):
        found = metrics.sequence(values)
        assert (found.low, found.high) == (0, 1)


def test_a_share_above_a_quantile_of_the_same_images_has_an_interval_that_holds():
    """Where the quantile is taken for known, four in five intervals hold."""
    truth, held = 1 - stats.norm.cdf(stats.norm.ppf(0.95) - 1), 0
    for seed in range(200):
        rng = Key(seed).rng(64)
        levels, scores = (rng.fold(part).normal(torch.empty(64)) for part in ("levels", "scores"))
        found = metrics.share_above(scores + 1, levels, 0.95)
        assert found.value == float((scores + 1 > torch.quantile(levels, 0.95, interpolation="higher")).double().mean())
        held += found.low <= truth <= found.high
    assert held >= 176
    assert metrics.share_above(torch.ones(8), torch.zeros(8), 0.95) == metrics.wilson(1.0, 8)


def test_accuracies_that_are_all_alike_have_wilsons_interval():
    assert metrics.average_by_bootstrap(torch.ones(64)) == metrics.wilson(1.0, 64)
    mixed = torch.tensor([0.0, 0.5, 1.0, 1.0])
    assert metrics.average_by_bootstrap(mixed) == metrics.bootstrap(mixed)


def test_flips_in_both_directions_are_twice_those_in_one():
    assert metrics.flipped(torch.tensor([1.0, 1.0, 1.0, 1.0])) == pytest.approx(2 / 16)
    assert metrics.flipped(torch.tensor([1.0, -1.0])) == 1
