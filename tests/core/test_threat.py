import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from components import images
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.core.threat import L1, L2, Linf, Threat

SHAPE = (3, 4, 4)
THREATS = {"linf": Linf(8 / 255), "l2": L2(0.5), "l1": L1(3.0)}
every_threat = pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS.keys())
P = {Linf: math.inf, L2: 2, L1: 1}


def clean(n: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images with many pixels on the edge of the range, where ball and range both bind."""
    return (2 * images(n, SHAPE, dtype) - 0.5).clamp(0, 1)


def far(x0: Tensor, scale: float = 1.0) -> Tensor:
    return x0 + scale * Key(31).rng(len(x0)).normal(x0)


def length(d: Tensor, threat: Threat) -> Tensor:
    return torch.linalg.vector_norm(d.flatten(1), P[type(threat)], dim=1)


def allowed(x: Tensor, x0: Tensor, threat: Threat) -> bool:
    return bool(((x >= 0) & (x <= 1)).all()) and bool((length(x - x0, threat) <= threat.eps * (1 + 1e-5)).all())


@every_threat
def test_a_random_start_is_inside_and_not_the_image(threat):
    x0 = clean()
    x = threat.start(x0, Key(0).rng(len(x0)))
    assert allowed(x, x0, threat)
    assert (length(x - x0, threat) > 0.05 * threat.eps).all()
    assert torch.equal(x, threat.start(x0, Key(0).rng(len(x0))))


@pytest.mark.parametrize(("threat", "power"), [(Linf(0.1), 1), (L2(0.1), 48)])
def test_a_random_start_is_uniform_in_the_ball(threat, power):
    """Away from the edge of the range: |d|^dimension is uniform, and so is every coordinate for Linf."""
    x0 = torch.full((4000, *SHAPE), 0.5)
    d = threat.start(x0, Key(0).rng(len(x0))) - x0
    u = (d[:, 0, 0, 0].abs() if power == 1 else length(d, threat)) / threat.eps
    assert abs(float((u**power).mean()) - 0.5) < 4 / math.sqrt(12 * len(x0))
    assert abs(float(d.mean(dim=0)[0, 0, 0])) < 4 * threat.eps / math.sqrt(len(x0))


def test_an_l1_start_has_the_length_of_the_ball():
    x0 = torch.full((50, *SHAPE), 0.5)
    threat = L1(0.4)
    assert torch.allclose(length(threat.start(x0, Key(0).rng(50)) - x0, threat), torch.tensor(0.4), rtol=1e-5)


class Zeros:
    """Noise at the lowest value that a uniform draw can take."""

    def uniform(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def normal(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)


@every_threat
def test_a_random_start_is_finite_for_the_lowest_draw(threat):
    x0 = clean()
    assert allowed(threat.start(x0, Zeros()), x0, threat)


@every_threat
def test_projection_lands_inside_keeps_what_is_inside_and_is_idempotent(threat):
    x0 = clean()
    for scale in (0.01, 0.3, 3.0):
        once = threat.project(far(x0, scale), x0)
        assert allowed(once, x0, threat)
        assert torch.allclose(threat.project(once, x0), once, rtol=0, atol=1e-6)
    inside = x0 + 0.9 * (once - x0)
    assert torch.allclose(threat.project(inside, x0), inside, rtol=0, atol=1e-6)
    assert torch.allclose(threat.project(x0, x0), x0, rtol=0, atol=1e-7)


@every_threat
def test_a_ball_of_no_size_is_the_image(threat):
    x0 = clean()
    nothing = type(threat)(0.0)
    assert torch.allclose(nothing.project(far(x0), x0), x0, rtol=0, atol=1e-6)
    assert torch.allclose(nothing.start(x0, Key(0).rng(len(x0))), x0, rtol=0, atol=1e-6)


def closest(target: np.ndarray, centre: np.ndarray, p: float, eps: float) -> np.ndarray:
    """The point of ball ∩ [0, 1]^d nearest to target, by a general solver on up and down movements u, v ≥ 0."""
    d = len(target)
    limits = [(0, min(1 - c, eps)) for c in centre] + [(0, min(c, eps)) for c in centre]
    ball = {"type": "ineq", "fun": lambda m: eps - m.sum(), "jac": lambda m: -np.ones_like(m)}
    result = minimize(
        lambda m: ((centre + m[:d] - m[d:] - target) ** 2).sum(),
        np.zeros(2 * d),
        jac=lambda m: np.concatenate([r := 2 * (centre + m[:d] - m[d:] - target), -r]),
        bounds=limits,
        constraints=[ball] if p == 1 else [],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return centre + result.x[:d] - result.x[d:]


@pytest.mark.parametrize("threat", [Linf(0.1), Linf(0.4), L1(0.05), L1(0.5), L1(2.0), L1(50.0)], ids=str)
def test_projection_is_the_nearest_allowed_point(threat):
    x0 = clean(5, torch.float64)[:, :1, :2, :3]
    for scale in (0.05, 0.5, 2.0):
        x = far(x0, scale)
        found = threat.project(x, x0)
        for row in range(len(x0)):
            expected = closest(x[row].flatten().numpy(), x0[row].flatten().numpy(), P[type(threat)], threat.eps)
            assert np.abs(found[row].flatten().numpy() - expected).max() < 1e-5


def test_l2_projection_is_nearest_where_the_range_does_not_bind():
    x0 = torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    x, threat = far(x0), L2(0.3)
    d = x - x0
    expected = x0 + 0.3 * d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(threat.project(x, x0), expected, rtol=0, atol=1e-12)


@every_threat
def test_a_step_has_the_stated_length_and_climbs(threat):
    x = images(4, SHAPE)
    grad = Key(32).rng(4).normal(x)
    for scale in (1e-30, 1e-6, 1.0, 1e6):
        step = threat.ascend(x, scale * grad, 0.02) - x
        assert torch.allclose(length(step, threat), torch.tensor(0.02), rtol=1e-4)
        assert ((step * grad).flatten(1).sum(dim=1) > 0).all()


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1)], ids=str)
def test_a_step_is_the_steepest_of_its_length(threat):
    """By duality max ⟨d, g⟩ over |d|_p ≤ s is s·|g|_q with 1/p + 1/q = 1."""
    x = images(4, SHAPE)
    grad = Key(32).rng(4).normal(x)
    gain = ((threat.ascend(x, grad, 0.02) - x) * grad).flatten(1).sum(dim=1)
    dual = torch.linalg.vector_norm(grad.flatten(1), {Linf: 1, L2: 2}[type(threat)], dim=1)
    assert torch.allclose(gain, 0.02 * dual, rtol=1e-4)


def test_an_l1_step_moves_the_share_of_pixels_with_the_largest_gradient_that_can_move():
    x = torch.tensor([0.5, 1.0, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]).view(1, 1, 2, 5)
    grad = torch.tensor([1.0, 9.0, -3.0, -8.0, 2.0, 0.0, 0.1, 0.1, -0.1, 0.1]).view(1, 1, 2, 5)
    step = L1(1.0, share=0.2).ascend(x, grad, 0.06) - x
    expected = torch.tensor([0.0, 0.0, -0.03, 0.0, 0.03, 0.0, 0.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 5)
    assert torch.allclose(step, expected, rtol=0, atol=1e-7)


@every_threat
def test_no_gradient_no_step(threat):
    x = clean()
    assert torch.equal(threat.ascend(x, torch.zeros_like(x), 0.02), x)


@every_threat
def test_distance_is_the_norm_of_each_image(threat):
    x0 = clean()
    x = far(x0)
    expected = [np.linalg.norm((b - a).flatten().double(), P[type(threat)]) for a, b in zip(x0, x, strict=True)]
    assert np.allclose(threat.distance(x, x0), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [Linf, L2, L1])
@pytest.mark.parametrize("eps", [math.nan, math.inf, -math.inf, "8/255", None, True])
def test_an_eps_that_is_no_number_is_said_to_be_none(kind, eps):
    with pytest.raises(UserError, match=rf"^{kind.__name__} eps must be a finite number, .* not '?{eps}'?\.$"):
        kind(eps)


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_an_eps_is_a_plain_number_whoever_made_it(kind):
    for made in (np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5])):
        assert type(kind(made).eps) is float
        assert kind(made) == kind(0.5)
    for wrong in ([0.5], 0.5j, torch.tensor([0.5, 0.5])):
        with pytest.raises(UserError, match="eps must be a finite number"):
            kind(wrong)


def test_an_eps_out_of_reach_is_told_where_to_lie():
    with pytest.raises(UserError, match=r"Linf eps must lie in \[0, 1\]"):
        Linf(-0.1)
    for kind in (L2, L1):
        with pytest.raises(UserError, match="eps must be at least 0"):
            kind(-0.1)


def test_an_eps_in_8_bit_units_gets_the_hint():
    with pytest.raises(UserError, match=r"8/255 is 0\.031373"):
        Linf(8)
    assert Linf(1.0).eps == 1.0
    assert L2(8.0).eps == 8.0
