import pytest
import torch

from components import SHAPE, images, net_denoiser
from lustral.core.noise import Key
from lustral.core.threat import L1, L2, Linf
from lustral.defence import Defence
from lustral.evaluate.judge import judge, verify
from lustral.purifiers.presets import diffpure

THREATS = {"linf": Linf(0.1), "l2": L2(0.5), "l1": L1(2.0)}
every_threat = pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS.keys())
N = 5


def inside(threat, x0: torch.Tensor) -> torch.Tensor:
    return threat.start(x0, Key(2).rng(len(x0)))


@every_threat
def test_honest_candidates_are_left_alone(threat):
    x0 = images(N)
    x = inside(threat, x0)
    found = verify(x, x0, threat)
    assert torch.equal(found.x, x)
    assert not found.repaired.any()
    assert torch.equal(found.distance, threat.distance(x, x0))
    assert (found.distance > 0.1 * threat.eps).all()


@every_threat
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_candidates_that_are_not_finite_become_the_clean_image(threat, bad):
    x0 = images(N)
    x = inside(threat, x0)
    x[1, 0, 3, 4] = bad
    found = verify(x, x0, threat)
    assert torch.equal(found.x[1], x0[1])
    assert found.repaired.tolist() == [False, True, False, False, False]
    assert float(found.distance[1]) == 0
    assert torch.equal(found.x[2:], x[2:])


@every_threat
def test_candidates_outside_the_ball_are_projected(threat):
    x0 = images(N)
    x = inside(threat, x0)
    x[2] = (x0[2] + 0.3).clamp(0, 1)
    found = verify(x, x0, threat)
    assert found.repaired.tolist() == [False, False, True, False, False]
    assert (found.distance <= threat.eps + 1e-6).all()
    assert torch.equal(found.x[2], threat.project(x, x0)[2])


@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_candidates_outside_the_pixel_range_are_clamped(value):
    x0 = torch.full((2, *SHAPE), float(round(value)))
    x = x0.clone()
    x[1, 0, 0, 0] = value
    found = verify(x, x0, Linf(0.1))
    assert torch.equal(found.x, x0)
    assert found.repaired.tolist() == [False, True]


def test_rounding_errors_are_no_offence_but_real_excess_is():
    x0 = torch.full((2, *SHAPE), 0.5)
    x = x0 + torch.tensor([0.1 + 5e-7, 0.1 + 5e-6]).view(-1, 1, 1, 1)
    assert verify(x, x0, Linf(0.1)).repaired.tolist() == [False, True]


@every_threat
def test_the_8_bit_distance_is_that_of_the_rounded_image(threat):
    x0 = images(N)
    x = inside(threat, x0)
    rounded = torch.tensor([[round(v * 255) / 255 for v in row] for row in x.flatten(1).tolist()]).view_as(x)
    found = verify(x, x0, threat)
    assert torch.allclose(found.distance_8bit, threat.distance(rounded, x0), atol=1e-5)
    assert not torch.allclose(found.distance_8bit, found.distance, rtol=1e-5)


def test_without_a_threat_only_numbers_are_checked():
    x0 = images(2)
    x = torch.stack([x0[0] + 0.4, torch.full_like(x0[1], torch.nan)])
    found = verify(x, x0, None)
    assert torch.equal(found.x, torch.stack([x[0], x0[1]]))
    assert found.repaired.tolist() == [False, True]
    assert found.distance.tolist() == pytest.approx([0.4, 0.0])


def test_every_draw_of_the_judge_has_its_own_address():
    """Row i, draw d is one purification of image i under (id of i, d)."""
    defence = Defence(lambda x: x.flatten(1)[:, :3], diffpure(net_denoiser(), 0.1, "sde", steps=2))
    ids, x = torch.tensor([30, 4, 17]), images(3)
    found = judge(defence, x, Key(3).rng(ids), 4)
    assert found.shape == (3, 4, 3)
    assert not found.requires_grad
    for i, name in enumerate(ids.tolist()):
        for d in range(4):
            alone = defence.draws(x[i : i + 1], Key(3).rng(torch.tensor([name]), draw=d))
            assert torch.allclose(found[i, d], alone[0], atol=1e-5)
    assert len({float(v) for v in found[:, :, 0].flatten()}) == 12


@pytest.mark.parametrize("eps", [1.5, 12.0, 120.0])
def test_rounding_of_a_norm_that_is_a_sum_is_no_breach(eps):
    """Projected iterates on 3×32×32 are not mended; a tenth of a per cent beyond eps is."""
    x0 = Key(1).rng(16).uniform(torch.empty(16, 3, 32, 32))
    threat = L1(eps)
    x = threat.project(x0 + 0.5 * Key(2).rng(16).normal(x0), x0)
    assert not verify(x, x0, threat).repaired.any()
    grey = torch.full((1, 3, 32, 32), 0.5)
    beyond = grey + 1.001 * eps / 3072
    assert verify(beyond, grey, threat).repaired.all()
