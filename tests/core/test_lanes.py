"""Lanes: nothing but rounding depends on who runs together, no call is wasted, running out of memory is survived."""

import pytest
import torch

from components import PURIFIERS, Counted, finite_set, images, net_denoiser, sample_specific
from lustral.core.adjoint import Checkpointed, Direct, Identity, Skip, Surrogate
from lustral.core.kernel import purify
from lustral.core.lanes import Lanes
from lustral.core.noise import Key
from lustral.purifiers.presets import diffpure, gnsp
from lustral.samplers import DDIM

KEY = Key(9)


@pytest.mark.parametrize("name", PURIFIERS)
def test_lanes_change_nothing(name):
    purifier = PURIFIERS[name](finite_set(dtype=torch.float64))
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
    purifier = PURIFIERS["ssni-linear"](finite_set(dtype=torch.float64))
    x = images(5, dtype=torch.float64).requires_grad_()
    found, wanted = (
        torch.autograd.grad(purify(purifier, x, KEY.rng(5), adjoint=how).square().sum(), x)[0]
        for how in (Lanes(2, inner), inner)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrap", [lambda d: diffpure(d, 0.1, DDIM(dt=0.002)), lambda d: gnsp(d, (20, 40))])
def test_calls_are_the_sum_over_samples_and_parts_are_of_similar_length(wrap):
    x, rng = images(12), KEY.rng(12)
    alone = Counted(net_denoiser())
    for i in range(12):
        only = torch.tensor([i])
        purify(sample_specific(wrap(alone)), x[only], rng[only])
    together = Counted(net_denoiser())
    purify(sample_specific(wrap(together)), x, rng, adjoint=Lanes(4))
    assert sum(together.rows) == sum(alone.rows)
    assert max(together.rows) <= 4
    unsorted = Counted(net_denoiser())
    for part in torch.arange(12).split(4):
        purify(sample_specific(wrap(unsorted)), x[part.flip(0)], rng[part.flip(0)])
    assert len(together.rows) <= len(unsorted.rows)


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


def test_an_image_too_large_for_the_memory_is_said_to_be():
    with pytest.raises(torch.OutOfMemoryError):
        purify(diffpure(Small(0, OUT[0]), 0.1, DDIM(steps=2)), images(4), KEY.rng(4), adjoint=Lanes(4))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="something else"):
        purify(diffpure(Small(0, RuntimeError("something else")), 0.1, DDIM(steps=2)), images(4), 0, adjoint=Lanes(4))
