"""SSNI: the score norm against its formula, the laws' published values, grids, and what wrapping leaves alone."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from components import PURIFIERS, Counted, finite_set, gaussian_mixture, images, net_denoiser
from lustral.core.errors import UserError
from lustral.core.kernel import purify
from lustral.core.noise import Key, Rng
from lustral.denoisers.base import Denoiser, eps_network
from lustral.purifiers.presets import diffpure, gdmp, gnsp, ssni
from lustral.purifiers.sample_specific import NORMS, Linear, Logistic, Reference, Rounded, ScoreNorm, score_norm
from lustral.samplers import DDIM, DDPM, SDE
from lustral.schedules import VP, DiscreteVP

TIMES = tuple(i / 1000 for i in range(1, 21))
KEY = Key(5)


def test_the_norm_is_that_of_the_mean_score_on_the_published_scale():
    """s = −ε/√(1 − ᾱ) at √ᾱ·x + √(1 − ᾱ)·z with x on [-1, 1] (section 3.1 of the specification), as written there."""
    x, schedule, denoiser = images(4, dtype=torch.float64), VP(), gaussian_mixture(dtype=torch.float64)
    rng, eps = KEY.rng(4), eps_network(denoiser, schedule)
    total = 0
    for i, t in enumerate(TIMES[:3]):
        time = torch.full((4,), t, dtype=torch.float64)
        scale = torch.exp(schedule.log_scale(time))[:, None, None, None]
        spread = torch.sqrt(1 - scale**2)
        total = total - eps(scale * (2 * x - 1) + spread * rng.fold(i).normal(x), time) / spread
    wanted = (total / 3).square().sum(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(ScoreNorm(denoiser, schedule, TIMES[:3])(x, rng), wanted)


def test_sigmas_of_the_smallest_times_are_the_published_ones():
    """√(1 − ᾱ) is 0.0105 at 1/1000 and 0.0772 at 20/1000 (section 3.1)."""
    for t, wanted in ((0.001, 0.0105), (0.02, 0.0772)):
        scale = torch.exp(VP().log_scale(torch.tensor(t, dtype=torch.float64)))
        assert torch.sqrt(1 - scale**2).item() == pytest.approx(wanted, abs=5e-5)


def test_a_network_that_returned_the_noise_would_have_the_published_floor():
    """441 for 3×32×32 images and 20 times (section 3.1): the mean of 20 independent noises, each over its sigma."""
    x = torch.zeros(8, 3, 32, 32, dtype=torch.float64)

    class Perfect:
        """Knows the image: its noise estimate is the noise."""

        sigma_min, sigma_max = 0.0, 1.0

        def __call__(self, y, sigma):
            return x

    found = ScoreNorm(Perfect(), VP(), TIMES)(x, KEY.rng(8))
    assert found.mean().item() == pytest.approx(441, rel=0.01)


def test_the_single_score_variant_sees_no_noise():
    x, denoiser = images(3), net_denoiser()
    norm = ScoreNorm(denoiser, VP(), (0.02,), noisy=False)
    assert torch.equal(norm(x, KEY.rng(3)), norm(x, Key(6).rng(3)))
    assert not torch.equal(norm(x, KEY.rng(3)), ScoreNorm(denoiser, VP(), (0.02,))(x, KEY.rng(3)))


def test_times_that_the_denoiser_does_not_know_are_refused():
    with pytest.raises(UserError, match="leave the smallest times out"):
        ScoreNorm(Limited(), VP(), TIMES)


class Limited:
    """A denoiser that knows noise from 0.03."""

    sigma_min, sigma_max = 0.03, 1.0

    def __call__(self, x, sigma):
        return 0.9 * x


def test_unknown_times_are_left_out_by_default():
    made = ssni(diffpure(Limited(), 0.1, "ddim", steps=2), Reference(1.0, 1.0, 0.0, 2.0, 2))
    assert made.measure.times == TIMES[14:]  # sigma(0.015) = 0.0306


# ---------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("bias", [0, 5, 20])
def test_an_average_image_gets_half_of_the_largest_time(bias):
    """SSNI-N: t(mean) = round((t* − 1 + b)/2) in steps of 1/1000 (section 11)."""
    law = Rounded(Logistic(0.099, mean=7.0, tau=2.0, bias=bias / 1000))
    found = law(torch.tensor([7.0]))
    assert found.item() * 1000 == pytest.approx(round((100 - 1 + bias) / 2), abs=1e-9)


def test_laws_are_their_formulas():
    norms = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    sigmoid = 1 / (1 + torch.exp(-(norms - 5) / 2))
    torch.testing.assert_close(Logistic(0.1, 5.0, 2.0, bias=0.02)(norms), 0.12 * sigmoid)
    torch.testing.assert_close(Linear(0.1, 1.0, 9.0, bias=0.01)(norms), 0.1 * (norms - 1) / 8 + 0.01)
    assert Linear(0.1, 2.0, 5.0)(norms).tolist() == [1e-3, pytest.approx(0.1 * 2 / 3), 0.1]


def test_the_reference_is_of_clean_norms():
    found = Reference.of(torch.tensor([1.0, 2.0, 6.0]))
    assert found == Reference(3.0, pytest.approx(7**0.5), 1.0, 6.0, 3)
    with pytest.raises(UserError, match="two images"):
        Reference.of(torch.tensor([1.0]))


# --------------------------------------------------------------------------------------------------------------- grids


def indices(time: float, n: int) -> list[int]:
    """The published code's timestep indices for one sample, from noisy to clean: t/N − 1 of every row that moves."""
    table = DDIM(1.0, steps=n, whole=True).table(DiscreteVP.linear(), torch.tensor([time], dtype=torch.float64), n)
    times = DiscreteVP.linear().time(table.sigma)
    return (times * 1000 - 1).round().long()[0].tolist()


def test_the_published_grid_repeats_indices():
    """t = 5 and n = 20 give 0, 0, 0, 0, 1, 1, 1, 1, 2, …, 4 from clean to noisy (section 3.4)."""
    assert indices(0.005, 20)[::-1] == [i for i in range(5) for _ in range(4)]
    assert indices(0.100, 20)[::-1] == list(range(4, 100, 5))


def test_a_repeated_index_is_the_identity_and_costs_nothing():
    """20 columns, of which 5 move: the published code calls its network in the other 15, too, to no effect."""
    denoiser = Counted(finite_set())
    rounded = DDIM(1.0, steps=20, whole=True)
    table = rounded.table(DiscreteVP.linear(), torch.tensor([0.005], dtype=torch.float64), 20)
    assert table.sigma.shape == (1, 20)
    still = table.b[0] == 0
    assert int(still.sum()) == 15
    assert torch.equal(table.a[0, still], torch.ones(15, dtype=torch.float64))
    assert not table.c[0, still].any()
    made = ssni(
        diffpure(denoiser, 0.1, rounded, schedule=DiscreteVP.linear()),
        Reference(1e6, 1.0, 0.0, 1.0, 2),
        norm=ScoreNorm(denoiser, DiscreteVP.linear(), (0.02,)),
        published=True,
    )
    purify(made, images(3), KEY.rng(3))
    assert denoiser.rows == [3, 3]  # the norm, and the one step of the least time


def test_cleaner_images_take_fewer_steps_where_steps_have_a_length():
    denoiser, schedule = Counted(net_denoiser()), DiscreteVP.linear()
    norm = ScoreNorm(net_denoiser(), schedule, (0.02,))
    x = images(5)
    seen = norm(x, KEY.rng(5).fold("init", "measure"))
    law = Linear(0.1, float(seen.min()), float(seen.max()), least=0.001)
    made = ssni(
        diffpure(denoiser, 0.1, DDPM(dt=0.01), schedule=schedule),
        Reference(0.0, 1.0, law.low, law.high, 5),
        law="linear",
        norm=norm,
    )
    purify(made, x, KEY.rng(5))
    wanted = torch.ceil(law(seen) / 0.01 - 1e-6).sum().item()
    assert sum(denoiser.rows) == wanted < 5 * 10


# ---------------------------------------------------------------------------------------------------------- gradients


def abar(t: Tensor) -> Tensor:
    return torch.exp(-0.5 * 19.9 * t**2 - 0.1 * t)


def noise_by_hand(denoiser: Denoiser, v: Tensor, t: Tensor) -> Tensor:
    """ε(x_t, t) of images on [-1, 1]."""
    a = abar(t)
    clean = 2 * denoiser(0.5 + v / (2 * a.sqrt()), (0.5 * ((1 - a) / a).sqrt()).expand(len(v))) - 1
    return (v - a.sqrt() * clean) / (1 - a).sqrt()


def ssni_by_hand(denoiser: Denoiser, x: Tensor, rng: Rng, law: Callable, grid: Callable, held: bool = False) -> Tensor:
    """SSNI over DDPM on [-1, 1] from sections 1 and 3, an image at a time; ``grid`` lists an image's times down to 0.

    ``held`` leaves the gradient through the time out, as the published attack does.
    """
    rows = []
    for k, v in enumerate((2 * x - 1).split(1)):
        place = rng[k : k + 1]
        total = 0
        for i, t in enumerate(torch.tensor([0.02, 0.03], dtype=x.dtype)):
            z = place.fold("init", "measure", i).normal(v)
            noisy = abar(t).sqrt() * v + (1 - abar(t)).sqrt() * z
            total = total - noise_by_hand(denoiser, noisy, t) / (1 - abar(t)).sqrt()
        time = law((total / 2).square().sum().sqrt())
        times = grid(time.detach() if held else time)
        v = abar(times[0]).sqrt() * v + (1 - abar(times[0])).sqrt() * place.fold("init").normal(v)
        for i, (t, s) in enumerate(pairwise(times)):
            eps = noise_by_hand(denoiser, v, t)
            clean = (v - (1 - abar(t)).sqrt() * eps) / abar(t).sqrt()
            if s.item() == 0:
                v = clean
            else:
                c = ((1 - abar(t) / abar(s)) * (1 - abar(s)) / (1 - abar(t))).sqrt()
                z = place.fold("step", i).normal(v)
                v = abar(s).sqrt() * clean + c * z + (1 - abar(s) - c**2).sqrt() * eps
        rows.append((v + 1) / 2)
    return torch.cat(rows)


def equal_steps(time: Tensor) -> list[Tensor]:
    return [time * (1 - k / 4) for k in range(5)]


def steps_of_a_length(time: Tensor) -> list[Tensor]:
    """Down by 0.02, the last step being shorter."""
    times = [time - 0.02 * k for k in range(math.ceil(time.item() / 0.02))]
    return [*times, torch.zeros_like(time)]


LAWS = {
    "logistic": lambda e: 0.1 * torch.sigmoid((e - 15) / 1.5),
    "linear": lambda e: 0.1 * (e - 10) / (20 - 10),
}


@pytest.mark.parametrize(
    ("sampler", "grid"),
    [(DDPM(steps=4), equal_steps), (DDPM(dt=0.02), steps_of_a_length)],
    ids=["steps", "dt"],
)
@pytest.mark.parametrize("law", LAWS)
def test_ssni_and_its_exact_gradient_equal_plain_autograd_on_its_equations(law, sampler, grid):
    """Through the score norm, the law, and every time of an image's own grid."""
    denoiser, x = gaussian_mixture(dtype=torch.float64), images(4, dtype=torch.float64).requires_grad_()
    norm, reference = ScoreNorm(denoiser, VP(), (0.02, 0.03)), Reference(15.0, 1.5, 10.0, 20.0, 5)
    made = ssni(diffpure(denoiser, 0.1, sampler), reference, law=law, norm=norm)
    upstream = KEY.fold("upstream").rng(4).normal(x)
    found, wanted = purify(made, x, KEY), ssni_by_hand(denoiser, x, KEY.rng(4), LAWS[law], grid)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    blind = ssni_by_hand(denoiser, x, KEY.rng(4), LAWS[law], grid, held=True)
    grad, wanted, blind = (torch.autograd.grad(out, x, upstream)[0].flatten(1) for out in (found, wanted, blind))
    torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    assert (torch.cosine_similarity(grad, wanted) > 1 - 1e-9).all()
    assert ((blind - wanted).norm(dim=1) > 1e-4 * wanted.norm(dim=1)).all()


@pytest.mark.parametrize("name", ["ssni", "ssni-linear", "ssni-gdmp", "ssni-gnsp"])
def test_the_shared_components_choose_times_that_their_laws_do_not_cut(name):
    """Nothing flows through a time that is cut, so their gradients would be checked without the law."""
    shape = (1, 2, 2)
    made, rng = PURIFIERS[name](gaussian_mixture(shape, torch.float64)), Key(21).rng(2)
    norms = made.init(images(2, shape, torch.float64), rng.fold("init")).seen
    for stage in made.stages:
        dark, bright = stage.t_star(norms).tolist()
        assert stage.t_star.least < dark < bright < stage.t_max


# ------------------------------------------------------------------------------------------------------------ wrapping


CONSTANT = Reference(mean=0.0, std=1.0, low=0.0, high=1e-9, images=2)  # SSNI-L: any norm above 1e-9 gets the whole t*


@pytest.mark.parametrize(
    "make",
    [
        lambda d: diffpure(d, 0.1, "sde", steps=4),
        lambda d: diffpure(d, 0.1, DDIM(dt=0.03)),
        lambda d: diffpure(d, 0.08, SDE(steps=2), rounds=3),
        lambda d: gnsp(d, (2, 3), DiscreteVP.linear(n=50)),
        lambda d: gdmp(d, 0.06, rounds=2, steps=2, strength=30.0),
    ],
)
def test_with_a_constant_time_ssni_is_the_purifier_that_it_wraps(make):
    plain = make(net_denoiser())
    first = plain.stages[0] if hasattr(plain, "stages") else plain
    made = ssni(plain, CONSTANT, law="linear", norm=ScoreNorm(net_denoiser(), first.schedule, (0.03,)))
    assert torch.equal(purify(made, images(4), KEY.rng(4)), purify(plain, images(4), KEY.rng(4)))


def test_rounds_ask_about_the_input_and_not_about_their_own_stages():
    denoiser = Counted(net_denoiser())
    norm = ScoreNorm(denoiser, VP(), (0.02, 0.03))
    made = ssni(diffpure(net_denoiser(), 0.1, DDIM(steps=2), rounds=3), Reference(10.0, 5.0, 2.0, 16.0, 5), norm=norm)
    purify(made, images(5), KEY.rng(5))
    assert denoiser.rows == [5, 5]


def test_denoisers_are_told_sigma_in_the_images_own_precision():
    told = set()

    class Strict:
        sigma_min, sigma_max = 0.001, 1.0

        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            told.add(sigma.dtype)
            return 0.9 * x

    made = ssni(diffpure(Strict(), steps=2), Reference(1.0, 1.0, 0.5, 1.5, 9))
    assert purify(made, images(2).float(), Key(0)).dtype == torch.float32
    assert told == {torch.float32}


def test_ssni_needs_diffusions_and_a_law():
    reference = Reference(1.0, 1.0, 0.0, 2.0, 2)
    with pytest.raises(UserError, match="constant t_star"):
        ssni(diffpure(net_denoiser(), lambda x: x.mean((1, 2, 3)), "ddim", t_max=0.1), reference)
    with pytest.raises(UserError, match="Did you mean 'linear'"):
        ssni(diffpure(net_denoiser(), 0.1, "ddim"), reference, law="linar")
    with pytest.raises(UserError, match="above 0"):
        ssni(diffpure(net_denoiser(), 0.1, "ddim"), reference, tau=0.0)


def test_a_reference_brings_its_own_norm():
    denoiser = gaussian_mixture()
    for kind in NORMS:
        made = ssni(diffpure(denoiser, 0.1, "ddpm", steps=2), Reference(1.0, 1.0, 0.0, 2.0, 2, kind))
        assert made.measure == score_norm(denoiser, kind)
