"""The bookkeeping of searches, on looks and outcomes that the tests write down."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from lustral.attacks.apgd import APGD
from lustral.attacks.gradients import Look, exact
from lustral.attacks.pgd import PGD
from lustral.attacks.search import Best, Outcome, Restarts, begin, join, unfooled
from lustral.core.errors import UserError
from lustral.core.noise import Key, audit
from lustral.core.threat import L2, Linf

NAN = float("nan")


def pictures(*values: float) -> Tensor:
    return torch.tensor(values).float().view(-1, 1, 1, 1)


def look(wrong: list[float], loss: list[float]) -> Look:
    return Look(None, torch.tensor(loss), torch.tensor(wrong))


def outcome(x: list[float], loss: list[float], wrong: list[float], losses: list, wrongs: list) -> Outcome:
    return Outcome(pictures(*x), *(torch.tensor(part) for part in (loss, wrong, losses, wrongs)))


def same(a: Tensor, values: list) -> bool:
    return torch.equal(a.nan_to_num(-99), torch.tensor(values).nan_to_num(-99))


def test_the_candidate_is_wrong_in_most_draws_and_among_those_has_the_largest_loss():
    best, rows = Best(pictures(0, 0, 0, 0), 0), torch.arange(4)
    best.see(rows, pictures(1, 1, 1, 1), look([0.5, 0.5, 0.5, 0.5], [2.0, 2.0, 2.0, 2.0]))
    # More wrong at a smaller loss; equally wrong at a larger loss; less wrong at a larger loss; the same again.
    best.see(rows, pictures(2, 2, 2, 2), look([0.75, 0.5, 0.25, 0.5], [1.0, 3.0, 9.0, 2.0]))
    found = best.outcome()
    assert found.x.flatten().tolist() == [2, 2, 1, 1]
    assert found.loss.tolist() == [1, 3, 2, 2]
    assert found.wrong.tolist() == [0.75, 0.5, 0.5, 0.5]


def test_the_first_look_is_better_than_none_however_good_the_defence():
    best = Best(pictures(0), 0)
    best.see(torch.arange(1), pictures(1), look([0.0], [-1e30]))
    assert best.outcome().x.item() == 1


def test_histories_are_nan_where_an_image_had_left_and_hold_noted_looks_alone():
    best = Best(pictures(0, 0, 0), 1)
    best.note(torch.tensor([0, 1, 2]), look([0.0, 0.5, 1.0], [1.0, 2.0, 3.0]))
    best.choose(torch.tensor([0, 1]), pictures(7, 7), look([1.0, 0.0], [8.0, 9.0]))
    best.note(torch.tensor([2, 1]), look([0.25, 0.75], [4.0, 5.0]))
    found = best.outcome()
    assert same(found.losses, [[1.0, NAN], [2.0, 5.0], [3.0, 4.0]])
    assert same(found.wrongs, [[0.0, NAN], [0.5, 0.75], [1.0, 0.25]])
    assert found.looks.tolist() == [1, 2, 2]
    assert found.x.flatten().tolist() == [7, 7, 0], "a noted look chooses nothing"


@pytest.mark.parametrize(
    ("looks", "decided"),
    [
        ("C", False),
        ("CC", True),
        ("CcC", False),
        ("CpC", False),
        ("cCC", True),
        ("CNC", True),
        ("CnC", False),
        ("CqC", False),
        ("CCn", False),
        ("NNNN", False),
        ("CNNN", False),
        ("SS", True),
        ("SsS", False),
        ("SSs", False),
    ],
)
def test_an_image_is_decided_after_two_choosing_looks_in_a_row_without_a_right_draw_in_any_look(looks, decided):
    """C chooses, N only notes, S does both; capitals: all draws wrong, p and q: half the draws, other small: none."""
    best, rows = Best(pictures(0, 0), patience=2), torch.tensor([1])
    for kind in looks:
        value = look([1.0 if kind.isupper() else 0.5 if kind in "pq" else 0.0], [0.0])
        if kind in "Ccp":
            best.choose(rows, pictures(1), value)
        elif kind in "Ss":
            best.see(rows, pictures(1), value)
        else:
            best.note(rows, value)
    assert best.open().tolist() == ([0] if decided else [0, 1])


def test_without_patience_no_image_is_ever_decided():
    best = Best(pictures(0, 0), patience=0)
    for _ in range(5):
        best.see(torch.arange(2), pictures(1, 1), look([1.0, 0.0], [0.0, 0.0]))
    assert best.open().tolist() == [0, 1]


def test_the_clean_images_are_not_written_to():
    x0 = pictures(0, 0)
    Best(x0, 0).see(torch.arange(2), pictures(1, 1), look([1.0, 1.0], [0.0, 0.0]))
    assert x0.flatten().tolist() == [0, 0]


def test_join_keeps_the_better_candidate_of_each_image_and_both_histories():
    first = outcome([1, 2, 3, 4], [5.0, 5, 5, 5], [0.5, 0.5, 0.5, 0.5], [[1.0], [2], [3], [4]], [[0.1]] * 4)
    second = outcome([9, 8, 7], [9.0, 1, 6], [0.25, 0.75, 0.5], [[6.0, 7], [8, NAN], [9, 9]], [[0.2, 0.3]] * 3)
    found = join(first, second, torch.tensor([3, 0, 1]))
    assert found.x.flatten().tolist() == [8, 7, 3, 4]
    assert found.loss.tolist() == [1, 6, 5, 5]
    assert found.wrong.tolist() == [0.75, 0.5, 0.5, 0.5]
    assert same(found.losses, [[1.0, 8.0, NAN], [2.0, 9.0, 9.0], [3.0, NAN, NAN], [4.0, 6.0, 7.0]])
    assert found.wrongs.isnan().sum(dim=1).tolist() == [0, 0, 2, 0]
    assert first.x.flatten().tolist() == [1, 2, 3, 4], "the outcomes that are joined stay as they were"


def test_unfooled_images_were_right_in_some_draw():
    found = outcome([0, 0, 0], [0.0] * 3, [1.0, 0.75, 0.0], [[0.0]] * 3, [[0.0]] * 3)
    assert unfooled(found).tolist() == [1, 2]
    assert unfooled(found, leave=False).tolist() == [0, 1, 2]


@dataclass
class Script:
    """A search whose n-th run hands in the n-th row of the tables, by image id; remembers ids, labels and noise."""

    wrong: list[list[float]]
    loss: list[list[float]]
    threat: Linf = Linf(0.1)
    looks: int = 2
    ran: list = field(default_factory=list)

    def run(self, victim, x0, y, rng) -> Outcome:
        k, ids = len(self.ran), rng.ids
        self.ran.append((ids.tolist(), x0.flatten().tolist(), y.tolist(), rng.normal(x0)))
        wrong, loss = torch.tensor(self.wrong[k])[ids], torch.tensor(self.loss[k])[ids]
        twice = [part[:, None].expand(-1, 2) for part in (loss, wrong)]
        return Outcome(torch.full_like(x0, k + 1), loss, wrong, *twice)


def test_restarts_go_on_with_the_images_that_are_not_fooled_and_keep_the_better_candidate():
    search = Script([[0.5, 1.0, 0.5], [0.0, 9.0, 1.0], [0.5, 9.0, 9.0]], [[1.0, 1, 1], [5.0, 5, 0], [2.0, 5, 5]])
    attack = Restarts(search, 3)
    found = attack.run(None, pictures(0.25, 0.5, 1), torch.tensor([4, 5, 6]), Key(1).rng(3))
    assert [(ids, x, y) for ids, x, y, _ in search.ran] == [
        ([0, 1, 2], [0.25, 0.5, 1], [4, 5, 6]),
        ([0, 2], [0.25, 1], [4, 6]),
        ([0], [0.25], [4]),
    ]
    assert found.x.flatten().tolist() == [3, 1, 2]
    assert found.wrong.tolist() == [0.5, 1, 1]
    assert found.loss.tolist() == [2, 1, 0]
    assert same(found.wrongs, [[0.5, 0.5, 0, 0, 0.5, 0.5], [1, 1, NAN, NAN, NAN, NAN], [0.5, 0.5, 1, 1, NAN, NAN]])
    assert found.looks.tolist() == [6, 2, 4]
    assert (attack.looks, attack.threat) == (6, search.threat)


def test_restarts_that_let_no_image_leave_run_them_all():
    search = Script([[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [2.0, 0.0]])
    found = Restarts(search, 2, leave=False).run(None, pictures(0, 0), torch.tensor([0, 0]), Key(1).rng(2))
    assert [ids for ids, *_ in search.ran] == [[0, 1], [0, 1]]
    assert found.x.flatten().tolist() == [2, 1]


def test_restarts_end_once_all_images_are_fooled():
    search = Script([[1.0, 1.0]], [[0.0, 0.0]])
    Restarts(search, 5).run(None, pictures(0, 0), torch.tensor([0, 0]), Key(1).rng(2))
    assert len(search.ran) == 1


def test_every_restart_has_noise_of_its_own():
    search = Script([[0.0] * 2] * 3, [[0.0] * 2] * 3)
    with audit() as seen:
        Restarts(search, 3).run(None, pictures(0, 0), torch.tensor([0, 0]), Key(1).rng(2))
    assert len(seen) == 6
    assert set(seen.values()) == {1}
    assert len(torch.cat([noise for *_, noise in search.ran]).unique()) == 6


def test_no_restart_at_all_is_refused():
    with pytest.raises(UserError, match="restart"):
        Restarts(Script([], []), 0)


@pytest.mark.parametrize("make", [PGD, APGD])
def test_images_that_want_a_gradient_get_candidates_without_a_graph(make):
    x, y = torch.full((2, 1, 2, 2), 0.5, requires_grad=True), torch.zeros(2, dtype=torch.long)
    found = make(Linf(0.2), exact(), steps=3).run(Cracked(torch.ones(1, 2, 2)), x, y, Key(0).rng(2))
    assert not found.x.requires_grad


@dataclass
class Cracked:
    """A victim whose gradient is NaN for the second image."""

    weight: Tensor

    def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
        if x.requires_grad:
            hole = torch.where(torch.arange(len(x)) == 1, torch.nan, 1.0).view(-1, 1, 1, 1)
            x.register_hook(lambda grad: grad * hole)
        lead = (x * self.weight).sum(dim=(1, 2, 3)) - 1
        return torch.stack([0 * lead, lead], dim=1)


@pytest.mark.parametrize("ball", [Linf, L2])
@pytest.mark.parametrize("search", [PGD, APGD])
def test_an_image_without_a_gradient_stays_an_image(ball, search):
    """NaN candidates would count as wrong to the search, and as clean to the judge."""
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.ones(3, dtype=torch.long)
    found = search(ball(0.2), exact(), steps=5).run(Cracked(torch.ones(1, 2, 2)), x, y, Key(0).rng(3))
    assert found.x.isfinite().all()
    assert (found.x[0] != x[0]).any()


def test_images_out_of_range_are_not_attacked():
    with pytest.raises(UserError, match=r"images to attack must lie in \[0, 1\] but span \[0, 255\]; divide by 255"):
        begin(pictures(0, 255), torch.zeros(2, dtype=torch.long), 0)
