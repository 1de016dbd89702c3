import pytest
import torch
from torch import Tensor

from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.core.vote import ABSTAIN, Abstain, Majority, MeanLogits, MeanSoftmax, Single

VOTES = [Single(), MeanLogits(5), MeanSoftmax(5), Majority(5), Abstain(MeanSoftmax(5), 0.2)]
every_vote = pytest.mark.parametrize("vote", VOTES, ids=str)


def logits(draws: int, images: int = 200, classes: int = 4) -> Tensor:
    return 2 * Key(41).rng(images).normal(torch.empty(images, draws, classes, dtype=torch.float64))


def votes(*choices: int, classes: int = 3, height: float = 1.0) -> Tensor:
    """One image whose draws choose these classes."""
    return height * torch.nn.functional.one_hot(torch.tensor([choices]), classes).double()


def test_single_takes_the_draw():
    x = logits(1)
    assert torch.equal(Single().merge(x), x[:, 0])
    assert torch.equal(Single().label(Single().merge(x)), x[:, 0].argmax(dim=1))


def test_mean_logits():
    vote, x = MeanLogits(5), logits(5)
    expected = sum(x[:, d] for d in range(5)) / 5
    assert torch.allclose(vote.merge(x), expected)
    assert torch.equal(vote.label(vote.merge(x)), expected.argmax(dim=1))


def test_mean_softmax():
    vote, x = MeanSoftmax(5), logits(5)
    probability = sum(x[:, d].exp() / x[:, d].exp().sum(dim=1, keepdim=True) for d in range(5)) / 5
    assert torch.allclose(vote.merge(x).exp(), probability)
    assert torch.equal(vote.label(vote.merge(x)), probability.argmax(dim=1))


def test_mean_softmax_is_finite_for_sure_classifiers():
    assert torch.isfinite(MeanSoftmax(2).merge(votes(0, 1, height=1e4))).all()


@pytest.mark.parametrize("draws", [1, 2, 5, 10])
def test_majority_counts_and_breaks_ties_by_probability(draws):
    vote, x = Majority(draws), logits(draws)
    probability = x.softmax(dim=2).mean(dim=1)
    expected, tied = [], 0
    for image in range(len(x)):
        counts = [sum(int(d.argmax()) == c for d in x[image]) for c in range(4)]
        best = [c for c in range(4) if counts[c] == max(counts)]
        tied += len(best) > 1
        expected.append(max(best, key=lambda c: probability[image, c]))
    assert vote.label(vote.merge(x)).tolist() == expected
    assert tied > 10 or draws == 1


def test_majority_and_the_means_can_disagree():
    x = torch.cat([votes(0, 0), votes(1, height=20.0)], dim=1)
    labels = {type(vote): int(vote.label(vote.merge(x))) for vote in (Majority(3), MeanLogits(3), MeanSoftmax(3))}
    assert labels == {Majority: 0, MeanLogits: 1, MeanSoftmax: 1}


def test_a_landslide_of_probability_does_not_beat_one_vote():
    """Two hesitant draws against one that is sure."""
    x = torch.cat([votes(0, 0, height=0.01), votes(1, height=1e4)], dim=1)
    assert int(Majority(3).label(Majority(3).merge(x))) == 0


def test_abstain_gives_no_verdict_below_the_margin():
    vote = Abstain(MeanSoftmax(1), margin=0.2)
    probabilities = torch.tensor([[0.59, 0.41], [0.61, 0.39], [0.1, 0.9], [0.5, 0.5]], dtype=torch.float64)
    merged = vote.merge(probabilities.log()[:, None])
    assert vote.label(merged).tolist() == [ABSTAIN, 0, 1, ABSTAIN]
    assert vote.draws == 1


def test_abstaining_at_no_margin_never_happens_and_merges_as_the_vote_inside():
    for inner in (MeanLogits(5), MeanSoftmax(5), Majority(5)):
        vote, x = Abstain(inner, 0.0), logits(5)
        assert torch.equal(vote.merge(x), inner.merge(x))
        assert torch.equal(vote.label(vote.merge(x)), inner.label(inner.merge(x)))


@every_vote
def test_merged_logits_have_a_gradient_in_every_draw(vote):
    x = logits(vote.draws, images=3).requires_grad_()
    merged = vote.merge(x)
    grad = torch.autograd.grad(torch.nn.functional.cross_entropy(merged, torch.tensor([0, 1, 2])), x)[0]
    assert (grad.abs().sum(dim=2) > 0).all()
    assert torch.autograd.gradcheck(vote.merge, x)


@every_vote
def test_the_order_of_the_draws_does_not_matter(vote):
    x = logits(vote.draws)
    assert torch.allclose(vote.merge(x.flip(1)), vote.merge(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanLogits(0), "at least 1 draw"),
        (lambda: MeanSoftmax(-1), "at least 1 draw"),
        (lambda: Majority(0), "at least 1 draw"),
        (lambda: Single(3), "choose MeanSoftmax, MeanLogits or Majority"),
        (lambda: Abstain(Single(), 1.5), "difference of probabilities"),
        (lambda: Abstain(Single(), float("nan")), "finite number, not nan"),
    ],
)
def test_impossible_votes_are_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()
