"""FAB: its projection against closed forms and scipy, its search against the exact minimal distance."""

import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from components import SHAPE
from lustral.attacks.fab import FAB, onto_boundary
from lustral.attacks.gradients import Look, exact
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.core.threat import L1, L2, Linf
from lustral.defence import Defence

KEY = Key(12)
BALLS = {"linf": Linf, "l2": L2, "l1": L1}
DUAL = {Linf: 1, L2: 2, L1: float("inf")}
every_norm = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS.keys())
W = Key(2).rng(1).normal(torch.empty(1, *SHAPE, dtype=torch.float64)).flatten()


def problem(n: int, pixels: int = 6) -> tuple[Tensor, Tensor]:
    """Images and normals of as many boundaries; one pixel of every normal is 0."""
    rng = Key(5).rng(n)
    w = rng.normal(torch.empty(n, 1, 1, pixels, dtype=torch.float64))
    w[..., 2] = 0
    return rng.uniform(w), w


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)


@pytest.mark.parametrize("side", [-1, 1])
def test_without_an_edge_nearby_the_step_is_the_closed_form(side):
    """In the p-norm the distance to a hyperplane is |need|/|w|_q; a flat direction is not moved along."""
    x, w = 0.5 + 0 * problem(20)[0], problem(20)[1]
    need = side * 0.05 * torch.ones(20, dtype=torch.float64)
    size, column = w.abs(), need.view(-1, 1, 1, 1)
    top = size == size.amax(dim=3, keepdim=True)
    expected = {
        Linf: column * w.sign() / size.sum(dim=3, keepdim=True),
        L2: column * w / w.square().sum(dim=3, keepdim=True),
        L1: torch.where(top, column / w, 0.0),
    }
    for ball, d in expected.items():
        assert torch.allclose(onto_boundary(ball(1.0), x, w, dot(w, x) + need), d, atol=1e-9)


def smallest(ball: type, x: list[float], w: list[float], need: float) -> float:
    """The least |d|_p with ⟨w, d⟩ = need and x + d in [0, 1], by scipy."""
    n = len(x)
    if ball is Linf:  # variables d and t ≥ |d|
        above = [[s * (j == i) for j in range(n)] + [-1] for i in range(n) for s in (1, -1)]
        bounds = [(-v, 1 - v) for v in x] + [(0, 1)]
        return linprog([0] * n + [1], above, [0] * 2 * n, [[*w, 0]], [need], bounds).fun
    if ball is L1:  # variables d⁺ and d⁻
        bounds = [(0, 1 - v) for v in x] + [(0, v) for v in x]
        return linprog([1] * 2 * n, A_eq=[[*w, *(-v for v in w)]], b_eq=[need], bounds=bounds).fun
    on_it = {"type": "eq", "fun": lambda d: d @ w - need, "jac": lambda d: w}
    found = minimize(
        lambda d: d @ d, [0.0] * n, jac=lambda d: 2 * d, bounds=[(-v, 1 - v) for v in x], constraints=on_it, tol=1e-14
    )
    assert found.success
    return found.fun**0.5


@every_norm
def test_within_the_pixel_range_the_step_is_as_short_as_scipys(ball):
    x, w = problem(12)
    reach = torch.where(w > 0, 1 - x, -x), torch.where(w > 0, -x, 1 - x)  # the furthest up and down
    share = torch.linspace(0.1, 0.95, 12, dtype=torch.float64)
    need = share * torch.where(torch.arange(12) % 2 == 0, dot(w, reach[0]), dot(w, reach[1]))
    d = onto_boundary(ball(1.0), x, w, dot(w, x) + need)
    assert torch.allclose(dot(w, d), need, atol=1e-9)
    assert ((x + d >= -1e-12) & (x + d <= 1 + 1e-12)).all()
    rows = zip(x.flatten(1).tolist(), w.flatten(1).tolist(), need.tolist(), strict=True)
    expected = torch.tensor([smallest(ball, *row) for row in rows], dtype=torch.float64)
    assert torch.allclose(ball(1.0).distance(x + d, x), expected, rtol=1e-5)
    assert (expected > 1.01 * need.abs() / torch.linalg.vector_norm(w.flatten(1), DUAL[ball], dim=1)).sum() > 2


@every_norm
def test_a_boundary_out_of_reach_is_approached_as_far_as_possible(ball):
    x, w = problem(4)
    d = onto_boundary(ball(1.0), x, w, dot(w, x) + 100)
    assert torch.allclose(x + d, torch.where(w > 0, 1.0, torch.where(w < 0, 0.0, x)), atol=1e-9)


def test_an_image_on_the_boundary_stays():
    x, w = problem(4)
    for ball in BALLS.values():
        assert onto_boundary(ball(1.0), x, w, dot(w, x)).abs().max() < 1e-9


def linear(x: Tensor) -> Tensor:
    """Class 1 leads by ⟨w, x − 1/2⟩."""
    return torch.stack([torch.zeros(len(x)).to(x), (x - 0.5).flatten(1) @ W], dim=1)


def grey(lead: list[float]) -> Tensor:
    """Images near mid-grey that are class 1 by these leads."""
    x = 0.45 + 0.1 * Key(3).rng(len(lead)).uniform(torch.empty(len(lead), *SHAPE, dtype=torch.float64))
    more = (torch.tensor(lead).double() - linear(x)[:, 1]) / W.square().sum()
    return x + (more[:, None] * W).view_as(x)


class Tried:
    """A victim that remembers the images of the looks without a gradient."""

    def __init__(self, victim: Defence):
        self.victim, self.x = victim, []

    def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
        if not torch.is_grad_enabled():
            self.x.append(x.clone())
        return self.victim.logits(x, rng, adjoint)


PAIRS = torch.tensor([[1, 0]] * 3)
LEADS = [0.05, 0.2, 0.4]


def minimal(ball: type) -> Tensor:
    return torch.tensor(LEADS).double() / torch.linalg.vector_norm(W, DUAL[ball])


@every_norm
def test_a_linear_classifier_is_fooled_at_the_exact_minimal_distance(ball):
    x0, victim = grey(LEADS), Tried(Defence(linear))
    FAB(ball(1.0), exact(), steps=15, patience=0).run(victim, x0, PAIRS, KEY.rng(3))
    fooled = [torch.where(linear(x)[:, 1] < 0, ball(1.0).distance(x, x0), torch.inf) for x in victim.x]
    nearest = torch.stack(fooled).amin(dim=0)
    assert (nearest >= minimal(ball) * (1 - 1e-6)).all()
    assert (nearest <= minimal(ball) * 1.01).all()


@every_norm
def test_only_images_within_eps_are_handed_in(ball):
    """Of three images one is beyond reach, by 2 %; the others fall although first steps overshoot."""
    eps = float(minimal(ball)[2]) / 1.02
    x0, victim = grey(LEADS), Tried(Defence(linear))
    found = FAB(ball(eps), exact(), steps=15).run(victim, x0, PAIRS, KEY.rng(3))
    assert max(float(ball(eps).distance(x, x0).max()) for x in victim.x if len(x) == 3) > eps, "it went further"
    assert (ball(eps).distance(found.x, x0) <= eps).all()
    assert found.wrong.tolist() == [1, 1, 0]
    assert (linear(found.x)[:, 1] < 0).tolist() == [True, True, False]


@every_norm
def test_an_image_that_needs_all_of_eps_but_2_percent_falls(ball):
    eps = float(minimal(ball)[2]) * 1.02
    found = FAB(ball(eps), exact(), steps=15).run(Defence(linear), grey(LEADS), PAIRS, KEY.rng(3))
    assert found.wrong.tolist() == [1, 1, 1]


def test_an_image_that_is_wrong_already_is_handed_in_as_it_is():
    x0 = grey([-0.1, 0.2])
    attack = FAB(Linf(0.1), exact(), steps=5)
    found = attack.run(Defence(linear), x0, PAIRS[:2], KEY.rng(2))
    assert torch.equal(found.x[0], x0[0])
    assert found.looks[0] == 0 < found.looks[1] <= attack.looks == 5


@pytest.mark.parametrize(("wrong", "kept"), [(0.4, 1.0), (0.6, 0.9)], ids=["few", "most"])
def test_the_search_turns_back_where_most_draws_are_wrong(wrong, kept):
    """At an iterate that crossed, it goes on from clean + 0.9·(at − clean)."""
    x0, chosen, climbed = grey(LEADS), [], []

    def select(victim, x, y, loss, rng):
        chosen.append(x)
        return Look(None, torch.zeros(len(x)), torch.full((len(x),), wrong))

    def gradient(victim, x, y, loss, rng):
        climbed.append(x)
        return exact()(victim, x, y, loss, rng)

    FAB(L2(1.0), gradient, steps=3, select=select, patience=0).run(Defence(linear), x0, PAIRS, KEY.rng(3))
    assert torch.equal(chosen[0], x0)
    assert torch.equal(climbed[0], x0)
    for at, onward in zip(chosen[1:], climbed[1:], strict=False):
        assert torch.allclose(onward, x0 + kept * (at - x0), atol=1e-12)
        assert not torch.allclose(at, x0, atol=1e-4)


def test_a_threat_that_has_no_projection_is_refused():
    class Other:
        pass

    x, w = problem(1)
    with pytest.raises(UserError, match="Other"):
        onto_boundary(Other(), x, w, dot(w, x))


def test_no_steps_at_all_are_refused():
    with pytest.raises(UserError, match="1 step"):
        FAB(Linf(0.1), exact(), steps=0)


def test_a_tiny_weight_does_not_move_its_pixel():
    """The first bound of the common length is then about 1e15."""
    x, w = torch.full((1, 1, 1, 2), 0.5).double(), torch.tensor([1.0, 1e-15]).double().view(1, 1, 1, 2)
    d = onto_boundary(L2(1.0), x, w, dot(w, x) + 0.1)
    assert torch.allclose(d.flatten(), torch.tensor([0.1, 1e-16]).double(), atol=1e-9)
