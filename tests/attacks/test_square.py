"""The Square attack against its paper (Andriushchenko et al. 2020) and its authors' schedule."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from components import SHAPE, images, jitter
from lustral.attacks.gradients import Selection
from lustral.attacks.losses import margin
from lustral.attacks.square import Square, square_side, squares, stripes
from lustral.core.errors import UserError
from lustral.core.noise import Key, audit
from lustral.core.threat import L1, L2, Linf
from lustral.defence import Defence
from lustral.purifiers.compose import from_function

KEY = Key(13)
W = Key(2).rng(1).normal(torch.empty(1, *SHAPE)).flatten()
Y = torch.tensor([0, 0, 1])


def linear(x: Tensor) -> Tensor:
    lead = (x - 0.5).flatten(1) @ W
    return torch.stack([-lead / 2, lead / 2], dim=1)


def grey(n: int = 3) -> Tensor:
    return 0.4 + 0.2 * Key(3).rng(n).uniform(torch.empty(n, *SHAPE))


class Noisy:
    """A randomised defence that remembers the images, the mean margin of each, and the noise addresses."""

    def __init__(self, draws: int):
        self.defence, self.draws = Defence(linear, from_function(jitter)), draws
        self.x, self.loss, self.met = [], [], Counter()

    def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
        assert not torch.is_grad_enabled(), "queries need no gradient"
        with audit() as seen:
            out = self.defence.logits(x, rng, adjoint)
        self.met.update(seen)
        self.x.append(x[:: self.draws].clone())
        self.loss.append(margin(out, Y.repeat_interleave(self.draws)).view(-1, self.draws).mean(dim=1))
        return out


def test_every_query_lies_on_the_faces_of_the_ball():
    x0, victim = grey(), Noisy(2)
    Square(Linf(0.1), queries=60, select=Selection(2), patience=0).run(victim, x0, Y, KEY.rng(3))
    assert len(victim.x) == 60
    for x in victim.x:
        assert torch.allclose((x - x0).abs(), torch.tensor(0.1), atol=1e-6)


def test_queries_keep_to_the_pixel_range():
    x0 = (2 * images(3) - 0.5).clamp(0, 1)
    victim = Noisy(1)
    found = Square(Linf(0.2), queries=40, patience=0).run(victim, x0, Y, KEY.rng(3))
    for x in (*victim.x, found.x):
        up, down = (x0 + 0.2).clamp_max(1), (x0 - 0.2).clamp_min(0)
        assert torch.minimum((x - up).abs(), (x - down).abs()).max() < 1e-6


def test_a_query_is_a_square_away_from_the_best_one_so_far_in_the_mean_over_draws():
    """So an accepted move never lowers the mean loss: the best query is where the search stands."""
    x0, victim, queries = grey(), Noisy(5), 80
    attack = Square(Linf(0.1), queries=queries, select=Selection(5), patience=0)
    found = attack.run(victim, x0, Y, KEY.rng(3))
    losses = torch.stack(victim.loss)
    moves = 0
    for k in range(1, queries):
        side = square_side(k, queries, 0.8, SHAPE[1:])
        for i in range(3):
            best = victim.x[int(losses[:k, i].argmax())][i]
            changed = (victim.x[k][i] != best)[0].nonzero()
            if len(changed):
                spread = changed.amax(dim=0) - changed.amin(dim=0) + 1
                assert (spread <= side).all()
            moves += int(losses[k, i] > losses[:k, i].max())
    assert moves > 20
    assert torch.equal(found.losses, losses.T)
    assert found.looks.tolist() == [attack.looks] * 3 == [queries] * 3


def test_all_queries_meet_the_same_draws():
    victim = Noisy(4)
    Square(Linf(0.1), queries=15, select=Selection(4), patience=0).run(victim, grey(), Y, KEY.rng(3))
    assert len(victim.met) == 3 * 4
    assert set(victim.met.values()) == {15}


@pytest.mark.parametrize(
    ("i", "share"),
    [(0, 1), (10, 1), (11, 2), (50, 2), (51, 4), (200, 4), (201, 8), (500, 8), (501, 16), (1000, 16), (1001, 32)]
    + [(2000, 32), (2001, 64), (4000, 64), (4001, 128), (6000, 128), (6001, 256), (8000, 256), (8001, 512)],
)
def test_the_side_follows_the_published_schedule(i, share):
    """p_selection of the authors' code; a square of p·h·w pixels, at least 1 and at most h − 1 wide."""
    for size in (32, 224):
        assert square_side(i, 10_000, 0.8, (size, size)) == max(1, round((0.8 / share) ** 0.5 * size))


def test_the_schedule_is_scaled_to_the_number_of_queries():
    sides = [square_side(i, 1000, 0.8, (32, 32)) for i in (1, 2, 5, 6, 50, 51, 800, 801)]
    assert sides == [29, 20, 20, 14, 10, 7, 2, 1]
    assert square_side(0, 10, 1.0, (8, 8)) == 7, "never the whole image"
    assert square_side(0, 10, 0.8, (1, 1)) == 1


def test_stripes_are_columns_of_random_sign_per_channel():
    x = torch.zeros(50, 3, 5, 8)
    drawn = stripes(x, KEY.rng(50))
    assert drawn.shape == x.shape
    assert torch.equal(drawn, drawn[:, :, :1].expand_as(drawn))
    columns = drawn[:, :, 0]
    assert set(columns.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(columns.mean())) < 4 / columns.numel() ** 0.5
    assert not torch.equal(columns[:, 0], columns[:, 1])


@pytest.mark.parametrize("side", [1, 3, 5])
def test_squares_have_their_side_one_sign_per_channel_and_any_place(side):
    n, height, width = 2000, 5, 7
    drawn = squares(torch.zeros(n, 3, height, width), KEY.rng(n), side)
    inside = drawn[:, 0] != 0
    assert torch.equal(drawn != 0, inside[:, None].expand(n, 3, height, width))
    assert (inside.sum(dim=(1, 2)) == side**2).all()
    assert (inside.any(dim=2).sum(dim=1) == side).all()
    assert (inside.any(dim=1).sum(dim=1) == side).all()
    signs = drawn.sum(dim=(2, 3)) / side**2
    assert set(signs.unique().tolist()) == {-2.0, 2.0}
    assert len(signs.unique(dim=0)) == 8
    corner = inside.flatten(1).float().argmax(dim=1)
    places = (height - side + 1) * (width - side + 1)
    counts = torch.bincount(corner)[torch.bincount(corner) > 0]
    assert len(counts) == places
    assert (counts - n / places).abs().max() < 5 * (n / places) ** 0.5


def test_most_of_a_linear_classifiers_worst_case_is_found():
    x0 = grey(2)
    attack = Square(Linf(0.1), queries=600, patience=0)
    found = attack.run(Defence(linear), x0, torch.zeros(2, dtype=torch.long), KEY.rng(2))
    gain = found.loss - (x0 - 0.5).flatten(1) @ W
    assert (gain > 0.8 * 0.1 * W.abs().sum()).all()
    assert (gain <= 0.1 * W.abs().sum() + 1e-4).all()


def test_an_image_that_falls_leaves():
    x0 = grey() + 0.3 * torch.tensor([1, -1, -1]).view(-1, 1, 1, 1) * W.sign().view(SHAPE)
    found = Square(Linf(0.02), queries=9).run(Defence(linear), x0, Y, KEY.rng(3))
    assert found.looks.tolist() == [1, 9, 1]
    assert found.wrong.tolist() == [1, 0, 1]


@pytest.mark.parametrize("threat", [L2(0.5), L1(1.0)], ids=["l2", "l1"])
def test_other_balls_are_refused(threat):
    with pytest.raises(UserError, match="Linf"):
        Square(threat)


@pytest.mark.parametrize("options", [{"queries": 0}, {"p": 0.0}, {"p": 1.1}], ids=str)
def test_parameters_without_a_meaning_are_refused(options):
    with pytest.raises(UserError, match="Square"):
        Square(Linf(0.1), **options)
