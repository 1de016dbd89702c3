"""Lanes: nothing but rounding depends on who runs together, no call is wasted, running out of memory is survived."""

from dataclasses import dataclass

import pytest
import torch

from components import PURIFIERS, Counted, gaussian_mixture, images, net_denoiser, sample_specific
from lustral.attacks.deviated import Deviated
from lustral.attacks.gradients import exact
from lustral.attacks.losses import cross_entropy
from lustral.core.adjoint import Checkpointed, Direct, Identity, Skip, Surrogate
from lustral.core.kernel import purify
from lustral.core.lanes import Lanes
from lustral.core.noise import Key
from lustral.defence import defend
from lustral.purifiers.presets import diffpure, gnsp
from lustral.samplers import DDIM

KEY = Key(9)


@pytest.mark.parametrize("name", PURIFIERS)
def test_lanes_change_nothing(name):
    purifier = PURIFIERS[name](gaussian_mixture(dtype=torch.float64))
    x, rng = images(7, dtype=torch.float64), KEY.rng(7)
    wanted = purify(purifier, x, rng)
    for width in (1, 3, 100):
        torch.testing.assert_close(purify(purifier, x, rng, adjoint=Lanes(width)), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("inner", [Identity(), Skip(), Surrogate(PURIFIERS["ddim"](net_denoiser()))])
def test_lanes_leave_approximations_what_they_are(inner):
    purifier, x = PURIFIERS["ssni"](net_denoiser()), images(5)
    found, wanted = (purify(purifier, x, KEY.rng(5), adjoint=how) for how in (Lanes(2, inner), inner))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("inner", [Checkpointed(), Direct()])
def test_gradients_pass_through_lanes(inner):
    purifier = PURIFIERS["ssni-linear"](gaussian_mixture(dtype=torch.float64))
    x = images(5, dtype=torch.float64).requires_grad_()
    found, wanted = (
        torch.autograd.grad(purify(purifier, x, KEY.rng(5), adjoint=how).square().sum(), x)[0]
        for how in (Lanes(2, inner), inner)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrap", [lambda d: diffpure(d, 0.1, DDIM(dt=0.002)), lambda d: gnsp(d, (20, 40))])
def test_calls_are_the_sum_over_samples_and_parts_are_of_similar_length(wrap):
    """In the given order every part of four has images that need many steps and images that need few."""
    x, rng = images(12)[torch.arange(12).view(4, 3).T.flatten()], KEY.rng(12)
    counted = Counted(net_denoiser())
    purifier = sample_specific(wrap(counted))

    def calls(rows, adjoint=None):
        """Rows of every call of the steps; the score norm's two for every part come first."""
        counted.rows.clear()
        purify(purifier, x[rows], rng[rows], adjoint=adjoint)
        return counted.rows[2 * -(-len(rows) // 4) :]

    given = torch.arange(12).split(4)
    alone = [len(calls(only)) for only in torch.arange(12).split(1)]
    together = calls(torch.arange(12), Lanes(4))
    assert sum(together) == sum(alone)
    assert max(together) == 4
    ranked = sorted(alone, reverse=True)
    assert len(together) == ranked[0] + ranked[4] + ranked[8]
    assert len(together) < sum(len(calls(part)) for part in given)


class Small:
    """A denoiser on a machine whose memory suffices for so many rows."""

    sigma_min, sigma_max = 0.0, 100.0

    def __init__(self, rows, error):
        self.rows, self.error, self.seen = rows, error, []

    def __call__(self, x, sigma):
        if len(x) > self.rows:
            raise self.error
        self.seen.append(len(x))
        return 0.9 * x


OUT = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("could not create a primitive"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError("Unable to allocate 256. TiB for an array"),
]


@pytest.mark.parametrize("error", OUT)
@pytest.mark.parametrize("own_times", [True, False])
def test_where_memory_ends_parts_are_halved(error, own_times):
    small, large = (diffpure(Small(rows, error), 0.1, DDIM(steps=3)) for rows in (3, 99))
    if own_times:
        small, large = (sample_specific(p, law="linear") for p in (small, large))
    x = images(10)
    found = purify(small, x, KEY.rng(10), adjoint=Lanes(10))
    torch.testing.assert_close(found, purify(large, x, KEY.rng(10)))


class Tight(Small):
    """The same where it is graphs that do not fit."""

    def __call__(self, x, sigma):
        return super().__call__(x, sigma) if torch.is_grad_enabled() else 0.9 * x


@pytest.mark.parametrize("error", OUT)
def test_where_memory_ends_in_the_backward_pass_images_are_halved(error):
    x, y = images(10), torch.arange(10) % 3
    tight, large = (
        defend(lambda v: v.flatten(1)[:, :3], diffpure(Tight(n, error), 0.1, DDIM(steps=3))) for n in (6, 99)
    )
    found, wanted = (exact(2)(victim, x, y, cross_entropy, KEY.rng(10)) for victim in (tight, large))
    torch.testing.assert_close(found, wanted)


def test_no_images_have_no_gradient_and_no_logits():
    x, y = images(4)[:0], torch.arange(0)
    defence = defend(lambda v: v.flatten(1)[:, :3], diffpure(net_denoiser(), 0.1, DDIM(steps=2)))
    assert defence.decide(x, KEY.rng(0)).logits.shape == (0, 3)
    assert exact()(defence, x, y, cross_entropy, KEY.rng(0)).grad.shape == x.shape


def test_parts_share_the_budget_for_graphs():
    """Their graphs live until the backward pass, all of them."""
    kept = []

    class Watched(Checkpointed):
        def __call__(self, purifier, x, rng):
            kept.append(self.budget)
            return super().__call__(purifier, x, rng)

    x = images(10).requires_grad_()
    for adjoint in (Watched(budget=300), Deviated(1.0, Watched(budget=300))):
        purify(diffpure(net_denoiser(), 0.1, DDIM(steps=2)), x, KEY.rng(10), adjoint=Lanes(4, adjoint))
    assert kept == [100] * 6


def test_an_image_too_large_for_the_memory_is_said_to_be():
    with pytest.raises(torch.OutOfMemoryError):
        purify(diffpure(Small(0, OUT[0]), 0.1, DDIM(steps=2)), images(4), KEY.rng(4), adjoint=Lanes(4))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="something else"):
        purify(diffpure(Small(0, RuntimeError("something else")), 0.1, DDIM(steps=2)), images(4), 0, adjoint=Lanes(4))


@dataclass(frozen=True)
class Plain:
    """A purifier whose state is a plain tuple, and that foresees its effort."""

    n_steps: int = 1

    def init(self, x, rng):
        return x, None

    def effort(self, state):
        return torch.arange(len(state[0]))

    def step(self, i, state, rng):
        return state[0] + rng.normal(state[0]), None

    def readout(self, state):
        return state[0]


def test_a_state_may_be_a_plain_tuple():
    x, rng = images(5), KEY.rng(5)
    assert torch.equal(purify(Plain(), x, rng, adjoint=Lanes(2)), purify(Plain(), x, rng))
