"""Searches made of searches, around searches that the tests write down."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from lustral.attacks.composed import Targeted, Transfer
from lustral.attacks.gradients import Selection, exact
from lustral.attacks.losses import cross_entropy, margin, toward
from lustral.attacks.pgd import PGD
from lustral.attacks.search import Outcome
from lustral.core.adjoint import Skip
from lustral.core.errors import UserError
from lustral.core.noise import Key, audit
from lustral.core.threat import Linf
from lustral.defence import Defence
from lustral.purifiers.compose import from_function

KEY = Key(15)


def pictures(*values: float) -> Tensor:
    return torch.tensor(values).float().view(-1, 1, 1, 1)


class ByDraw:
    """A victim of four classes whose logits depend on the image's id and the draw alone."""

    table = torch.tensor(
        [
            # One draw shouts for class 1, the mean is for class 3 and then 1.
            [[0.0, 6, 2, 1], [0, -1, 0, 5], [0, -1, 0, 5], [0, 0, 0, 5]],
            # The true class 2 comes first in the mean, then 0, 3, 1.
            [[5.0, 1, 9, 3], [5, 1, 9, 3], [5, 1, 9, 3], [5, 1, 9, 3]],
            # The true class 3 is the last of all.
            [[4.0, 2, 3, 0], [4, 2, 3, 0], [4, 2, 3, 0], [4, 2, 3, 0]],
        ]
    )
    y = torch.tensor([0, 2, 3])
    by_mean = ([3, 1, 2], [0, 3, 1], [0, 2, 1])
    by_first_draw = ([1, 2, 3], [0, 3, 1], [0, 2, 1])

    def __init__(self):
        self.adjoints = []

    def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
        self.adjoints.append(adjoint)
        return self.table[rng.ids, rng.draws]


@dataclass
class Reach:
    """A search that fools an image with the pairs of the table; hands in 10·label + target; remembers what ran."""

    fooled: set = frozenset()
    threat: Linf = Linf(0.1)
    looks: int = 5
    ran: list = field(default_factory=list)

    def run(self, victim, x0: Tensor, pairs: Tensor, rng) -> Outcome:
        self.ran.append((rng.ids.tolist(), x0.flatten().tolist(), [tuple(pair) for pair in pairs.tolist()]))
        rng.normal(x0)
        wrong = torch.tensor([float(tuple(pair) in self.fooled) for pair in pairs.tolist()])
        x = (10 * pairs[:, 0] + pairs[:, 1]).float().view(-1, 1, 1, 1)
        return Outcome(x, pairs[:, 1].float(), wrong, wrong[:, None], wrong[:, None])


@pytest.mark.parametrize(("draws", "order"), [(4, ByDraw.by_mean), (1, ByDraw.by_first_draw)], ids=["mean", "first"])
def test_classes_are_tried_in_the_order_of_the_clean_mean_logits(draws, order):
    search = Reach()
    Targeted(search, 9, Selection(draws)).run(ByDraw(), pictures(0.25, 0.5, 1), ByDraw.y, KEY.rng(3))
    assert len(search.ran) == 3, "a class has no more than the others to reach"
    for k, (ids, x, pairs) in enumerate(search.ran):
        assert (ids, x) == ([0, 1, 2], [0.25, 0.5, 1])
        assert pairs == [(0, order[0][k]), (2, order[1][k]), (3, order[2][k])]


def test_fooled_images_are_left_alone_and_the_best_of_the_others_targets_is_kept():
    search = Reach(fooled={(0, 3), (2, 3)})
    found = Targeted(search, 3, Selection(4)).run(ByDraw(), pictures(0.25, 0.5, 1), ByDraw.y, KEY.rng(3))
    assert [(ids, pairs) for ids, _, pairs in search.ran] == [
        ([0, 1, 2], [(0, 3), (2, 0), (3, 0)]),
        ([1, 2], [(2, 3), (3, 2)]),
        ([2], [(3, 1)]),
    ]
    assert found.x.flatten().tolist() == [3, 23, 32], "Reach's loss is the target: 2 is the best of 0, 2 and 1"
    assert found.wrong.tolist() == [1, 1, 0]
    assert found.looks.tolist() == [1, 2, 3]


def test_all_targets_are_tried_where_no_image_leaves():
    search = Reach(fooled={(0, 3), (2, 0), (3, 0)})
    Targeted(search, 2, Selection(4), leave=False).run(ByDraw(), pictures(0.25, 0.5, 1), ByDraw.y, KEY.rng(3))
    assert [ids for ids, *_ in search.ran] == [[0, 1, 2]] * 2


def test_the_search_ends_once_all_images_are_fooled():
    search = Reach(fooled={(0, 3), (2, 0), (3, 0)})
    attack = Targeted(search, 3, Selection(4))
    attack.run(ByDraw(), pictures(0.25, 0.5, 1), ByDraw.y, KEY.rng(3))
    assert len(search.ran) == 1
    assert (attack.looks, attack.threat) == (15, search.threat)


def test_classes_are_ranked_through_the_selections_adjoint_and_noise_is_met_once():
    victim = ByDraw()
    with audit() as seen:
        Targeted(Reach(), 3, Selection(2, Skip())).run(victim, pictures(0.25, 0.5, 1), ByDraw.y, KEY.rng(3))
    assert victim.adjoints == [Skip()]
    assert len(seen) == 9
    assert set(seen.values()) == {1}


def test_a_targeted_attack_reaches_its_class():
    """A linear classifier of four classes, each with a pixel of its own: the pixel of the target is what rises."""
    victim = Defence(lambda x: x.flatten(1) @ torch.eye(4))
    x0 = torch.tensor([[0.6, 0.5, 0.2, 0.1], [0.1, 0.2, 0.6, 0.5]]).view(2, 1, 2, 2)
    attack = Targeted(PGD(Linf(0.1), exact(), toward, steps=5, patience=1), 1)
    found = attack.run(victim, x0, torch.tensor([0, 2]), KEY.rng(2))
    assert victim.logits(found.x, KEY.rng(2)).argmax(dim=1).tolist() == [1, 3]
    assert found.wrong.tolist() == [1, 1]


def test_a_targeted_attack_without_targets_is_refused():
    with pytest.raises(UserError, match="1 target"):
        Targeted(Reach(), 0)


def leads(x: Tensor) -> Tensor:
    """Two classes; class 1 leads by the pixel's value."""
    return torch.cat([0 * x.flatten(1), x.flatten(1)], dim=1)


class Offer:
    """A source with its candidates, of which it thinks the world."""

    def __init__(self, *candidates: float):
        self.candidates = pictures(*candidates)


@dataclass(frozen=True)
class Hand:
    threat: Linf = Linf(1.0)
    looks: int = 3

    def run(self, source: Offer, x0: Tensor, y: Tensor, rng) -> Outcome:
        rng.normal(x0)
        n = len(x0)
        return Outcome(source.candidates, torch.arange(n) - 99.0, torch.ones(n), torch.ones(n, 3), torch.ones(n, 3))


def test_the_candidate_that_is_worst_for_the_victim_is_kept():
    """Label 0 suffers from a bright pixel, label 1 from a dark one, whatever the source says."""
    sources = (Offer(-0.3, 0.1, 0.7), Offer(0.2, 0.4, -0.9), Offer(0.1, 0.5, -0.2))
    y, x0 = torch.tensor([0, 0, 1]), pictures(0, 0, 0)
    attack = Transfer(Hand(), sources)
    found = attack.run(Defence(leads), x0, y, KEY.rng(3))
    assert torch.equal(found.x, pictures(0.2, 0.5, -0.9))
    assert torch.allclose(found.loss, torch.tensor([0.2, 0.5, 0.9]))
    assert torch.allclose(found.losses, torch.tensor([[-0.3, 0.2, 0.1], [0.1, 0.4, 0.5], [-0.7, 0.9, 0.2]]))
    assert found.wrong.tolist() == [1, 1, 1]
    assert found.looks.tolist() == [attack.looks] * 3 == [3] * 3
    assert attack.threat == Linf(1.0)


def test_of_two_candidates_the_one_that_is_wrong_in_more_draws_is_kept():
    """The margin of the first is 0.9 or −0.2 with even odds, the larger mean loss; the second is always just wrong."""

    def unsure(x: Tensor, rng) -> Tensor:
        return torch.where(x > 0.5, x - 0.55 + 0.55 * rng.sign(x), x)

    attack = Transfer(Hand(), (Offer(0.9), Offer(0.01)), Selection(4), margin)
    found = attack.run(Defence(leads, from_function(unsure)), pictures(0), torch.tensor([0]), KEY.rng(1))
    assert found.losses[0, 0] > found.losses[0, 1]
    assert 0 < float(found.wrongs[0, 0]) < 1
    assert found.wrongs[0, 1] == 1
    assert found.x.item() == pytest.approx(0.01)


def test_candidates_meet_the_same_draws_which_no_source_met():
    seen_by_victim = []

    class Auditor:
        def logits(self, x, rng, adjoint=None):
            with audit() as seen:
                rng.normal(x)
            seen_by_victim.append(seen)
            return leads(x)

    with audit() as by_sources:
        Transfer(Hand(), (Offer(0.1), Offer(0.2)), Selection(3), cross_entropy).run(
            Auditor(), pictures(0), torch.tensor([0]), KEY.rng(1)
        )
    assert seen_by_victim[0] == seen_by_victim[1]
    assert len(seen_by_victim[0]) == 3
    assert len(by_sources) == 2
    assert not by_sources.keys() & seen_by_victim[0].keys()


def test_a_transfer_of_a_targeted_search_is_judged_by_the_true_label():
    found = Transfer(Hand(), (Offer(0.3),)).run(Defence(leads), pictures(0), torch.tensor([[0, 1]]), KEY.rng(1))
    assert found.loss.item() == pytest.approx(0.3)


def test_a_transfer_from_nowhere_is_refused():
    with pytest.raises(UserError, match="source"):
        Transfer(Hand(), ())
