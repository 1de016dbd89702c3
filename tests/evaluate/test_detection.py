"""Detection against scikit-learn, closed forms, and its own interval's coverage."""

import math

import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.evaluate.detection import detect
from lustral.evaluate.metrics import wilson


def scores(n, shift, seed=0):
    """Normal scores of images that are hard or easy on both sides: clean and attacked share half of their variance."""
    rng = Key(seed).rng(n)
    common, clean, attacked = (rng.fold(part).normal(torch.empty(n)) for part in ("common", "clean", "attacked"))
    return (common + clean) / math.sqrt(2), (common + attacked) / math.sqrt(2) + shift


def test_area_and_curve_are_scikit_learns():
    clean, attacked = scores(50, 0.7)
    clean[:5] = attacked[:5]  # ties
    found = detect(clean, attacked)
    truth, all_scores = torch.tensor([0] * 50 + [1] * 50), torch.cat([clean, attacked])
    assert found.auroc.value == pytest.approx(roc_auc_score(truth, all_scores))
    false, true, _ = roc_curve(truth, all_scores, drop_intermediate=False)
    assert found.false == pytest.approx(false.tolist())
    assert found.true == pytest.approx(true.tolist())


def test_large_samples_reach_the_closed_form():
    clean, attacked = scores(4000, 1.0)
    found = detect(clean, attacked)
    assert found.auroc.value == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.012)
    assert found.caught.value == pytest.approx(1 - norm.cdf(norm.ppf(0.95) - 1), abs=0.03)


def test_the_interval_holds_in_95_of_100_repetitions_or_so():
    truth = norm.cdf(0.5 / math.sqrt(2))
    held = 0
    for seed in range(100):
        low, high = detect(*scores(60, 0.5, seed)).auroc[1:]
        held += low <= truth <= high
    assert 88 <= held <= 100


def test_scores_apart_and_scores_alike():
    low, high = torch.arange(10.0), torch.arange(10.0) + 10
    assert detect(low, high).auroc == wilson(1.0, 10)  # no resampling can tell how sure ten images make it
    assert detect(low, high).caught.value == 1
    assert detect(high, low).auroc.value == 0
    assert detect(low, low).auroc.value == 0.5


@pytest.mark.parametrize(
    ("clean", "attacked", "said"),
    [
        (torch.zeros(3), torch.zeros(2), "each of at least two images"),
        (torch.zeros(1), torch.zeros(1), "each of at least two images"),
        (torch.tensor([0.0, math.nan]), torch.zeros(2), "finite scores"),
    ],
)
def test_scores_that_make_no_sense_are_refused(clean, attacked, said):
    with pytest.raises(UserError, match=said):
        detect(clean, attacked)
