import pytest
import torch
from torch import Tensor, nn

from components import Counted, bright, gaussian_mixture, images, jitter, squash
from lustral.core.adjoint import Checkpointed, Direct
from lustral.core.errors import UserError
from lustral.core.kernel import purify, trace
from lustral.core.noise import Key, Rng
from lustral.defence import defend
from lustral.purifiers.compose import Chain, FieldNorm, chain, from_function, repeat, when
from lustral.purifiers.diffusion import Diffusion
from lustral.purifiers.presets import adp, diffpure, gdmp, gnsp, ssni
from lustral.purifiers.sample_specific import Reference
from lustral.samplers import DDIM, ODE, SDE, Heun, Langevin
from lustral.schedules import EDM, VP, DiscreteVP

KEY = Key(61)


def rng(x: Tensor, *path: str | int) -> Rng:
    return KEY.fold(*path).rng(len(x))


def test_a_function_is_applied_as_often_as_asked(x):
    assert torch.equal(purify(from_function(squash), x, KEY), squash(x))
    assert torch.equal(purify(from_function(squash, steps=3), x, KEY), squash(squash(squash(x))))


@pytest.mark.parametrize("adjoint", [Checkpointed(), Direct()])
def test_a_function_may_change_its_images_in_place(x, adjoint):
    mine, reference = x.clone(), x.clone().requires_grad_()
    expected = reference.sigmoid().sigmoid()
    assert torch.equal(purify(from_function(torch.sigmoid_, steps=2), mine, KEY, adjoint=adjoint), expected)
    assert torch.equal(mine, x)
    out = purify(from_function(torch.sigmoid_, steps=2), mine.requires_grad_(), KEY, adjoint=adjoint)
    grads = (torch.autograd.grad(found.sum(), at)[0] for found, at in ((out, mine), (expected, reference)))
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    "wrong",
    [lambda x: (x,), lambda x: None, lambda x: x[:1], lambda x: x[..., :4], lambda x: (255 * x).byte(), Tensor.numpy],
)
def test_a_function_returns_images_like_its_own(wrong, x):
    with pytest.raises(UserError, match=r"returns images .* of floats for images of that shape, not "):
        purify(from_function(wrong), x, KEY)


def test_images_far_out_of_range_reach_no_classifier(x):
    with pytest.raises(UserError, match=r"spans \[.*\]; a purifier returns images in \[0, 1\]"):
        defend(lambda x: x.flatten(1), lambda x: 255 * x).decide(x, 0)


def test_noise_that_no_seed_repeats_is_refused_where_one_is_given(x):
    noisy = from_function(lambda x: x + 0.1 * torch.randn_like(x))
    with pytest.raises(UserError, match="which the seed given here does not repeat"):
        purify(noisy, x, 0)
    assert not torch.equal(purify(noisy, x), purify(noisy, x))


def test_a_function_of_any_arguments_gets_images(x):
    assert torch.equal(purify(from_function(lambda *given: given[0]), x, KEY), x)


def sample_specific(denoiser):
    return ssni(diffpure(denoiser), Reference(1.0, 1.0, 0.5, 1.5, 9))


@pytest.mark.parametrize("make", [diffpure, adp, gdmp, gnsp, sample_specific])
def test_any_function_of_images_and_sigma_is_a_denoiser(make, x):
    found = purify(make(lambda x, sigma: 0.9 * x), x, KEY)
    assert found.shape == x.shape
    assert found.isfinite().all()


def test_a_function_of_images_and_rng_gets_noise_of_its_own_at_every_step(x):
    expected = jitter(jitter(x, rng(x, "step", 0)), rng(x, "step", 1))
    assert torch.equal(purify(from_function(jitter, steps=2), x, KEY), expected)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (torch.sigmoid, torch.sigmoid),
        (nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)),
        (lambda x, strength=0.5: strength * x, lambda x: 0.5 * x),
        (lambda x, *, strength=0.5: strength * x, lambda x: 0.5 * x),
        (lambda x, rng=None: x if rng is None else x + rng.normal(x), lambda x: x + rng(x, "step", 0).normal(x)),
    ],
    ids=["built-in", "module", "default", "keyword", "optional rng"],
)
def test_what_counts_as_a_function_of_images(function, expected, x):
    assert torch.equal(purify(from_function(function), x, KEY), expected(x))


def test_a_function_of_other_arguments_is_an_error():
    with pytest.raises(UserError, match=r"takes \(images\) or \(images, rng\), not \(x, rng, strength\)"):
        from_function(lambda x, rng, strength: x)
    with pytest.raises(UserError, match=r"not \(\)"):
        from_function(lambda: None)


def test_a_chain_runs_its_stages_in_order(x):
    first, second = from_function(squash, steps=2), from_function(lambda x: x**2)
    assert torch.equal(purify(chain(first, second), x, KEY), squash(squash(x)) ** 2)
    assert torch.equal(purify(chain(second, first), x, KEY), squash(squash(x**2)))
    assert torch.equal(purify(chain(first), x, KEY), purify(first, x, KEY))


def test_going_over_to_the_next_stage_is_one_step_that_shows_its_start(x):
    seen = list(trace(chain(from_function(squash, steps=2), from_function(torch.sqrt)), x.clamp_min(0.1), KEY))
    start = x.clamp_min(0.1)
    expected = [start, squash(start), *[squash(squash(start))] * 2, squash(squash(start)).sqrt()]
    assert len(seen) == len(expected)
    assert all(torch.equal(found, wanted) for found, wanted in zip(seen, expected, strict=True))


def test_a_stage_gets_the_noise_of_the_chains_own_steps(x, net):
    """The chain's step 2 enters the second stage; its steps follow, each with that step's noise."""
    second = diffpure(net, 0.1, steps=2)
    start = squash(squash(x))
    state = second.init(start, rng(x, "step", 2))
    for i in range(2):
        state = second.step(i, state, rng(x, "step", 3 + i))
    found = purify(chain(from_function(squash, steps=2), second), x, KEY)
    assert torch.equal(found, second.readout(state))


def test_chains_nest(x):
    stages = [from_function(squash), from_function(torch.sigmoid), from_function(lambda x: x**2)]
    nested = chain(stages[0], chain(stages[1], chain(stages[2])))
    assert torch.equal(purify(nested, x, KEY), purify(chain(*stages), x, KEY))


def test_repeat_is_a_chain_of_rounds_with_fresh_noise(x):
    once = from_function(jitter)
    assert repeat(once, 1) is once
    assert repeat(once, 3) == Chain((once, once, once))
    expected = jitter(jitter(x, rng(x, "step", 0)), rng(x, "step", 2))
    assert torch.equal(purify(repeat(once, 2), x, KEY), expected)


def test_rounds_of_diffpure_are_a_repeat(net):
    assert diffpure(net, rounds=2) == repeat(diffpure(net), 2)


@pytest.mark.parametrize("make", [lambda: chain(), lambda: repeat(from_function(squash), 0)])
def test_nothing_to_run_is_an_error(make):
    with pytest.raises(UserError, match="at least"):
        make()


def test_when_sends_each_image_its_way(x):
    chosen = bright(x)
    assert 0 < int(chosen.sum()) < len(x)
    both = purify(when(bright, from_function(squash, steps=2), from_function(torch.sigmoid)), x, KEY)
    assert torch.equal(both[chosen], squash(squash(x[chosen])))
    assert torch.equal(both[~chosen], torch.sigmoid(x[~chosen]))
    one = purify(when(bright, from_function(squash)), x, KEY)
    assert torch.equal(one[chosen], squash(x[chosen]))
    assert torch.equal(one[~chosen], x[~chosen])


@pytest.mark.parametrize("everyone", [True, False])
def test_when_all_images_go_one_way_the_other_is_not_run(x, everyone):
    def fail(x: Tensor) -> Tensor:
        raise AssertionError("should not run")

    taken, other = from_function(squash), from_function(fail)
    branches = (taken, other) if everyone else (other, taken)
    out = purify(when(lambda x: torch.full((len(x),), everyone), *branches), x, KEY)
    assert torch.equal(out, squash(x))


def test_the_branches_of_when_draw_different_noise(x):
    flat = torch.full_like(x, 0.4)
    out = purify(when(bright, from_function(jitter)), 1 - flat, KEY)
    otherwise = purify(when(lambda x: ~bright(x), from_function(squash), from_function(jitter)), 1 - flat, KEY)
    assert (out != otherwise).all()


def test_the_gradient_of_when_is_that_of_the_branch_taken(x):
    chosen = bright(x)
    x.requires_grad_()
    for adjoint in (Direct(), Checkpointed()):
        out = purify(when(bright, from_function(squash)), x, KEY, adjoint=adjoint)
        grad = torch.autograd.grad(out.sum(), x)[0]
        assert torch.allclose(grad[chosen], 1 - 0.6 * torch.cos(6 * x[chosen]))
        assert torch.equal(grad[~chosen], torch.ones_like(grad[~chosen]))


def test_the_condition_of_when_is_asked_without_a_gradient(x):
    asked = []

    def condition(x: Tensor) -> Tensor:
        asked.append(torch.is_grad_enabled())
        return bright(x)

    purify(when(condition, from_function(squash)), x.requires_grad_(), KEY)
    assert asked == [False]


def test_field_norm_is_the_euclidean_length_against_a_threshold(x):
    field = FieldNorm(lambda x: x - 0.5, threshold=1.5)
    lengths = (x - 0.5).square().sum(dim=(1, 2, 3)).sqrt()
    assert field(x).tolist() == (lengths > 1.5).tolist()
    assert 0 < int(field(x).sum()) < len(x)


def test_a_time_in_network_steps_gets_the_hint(net):
    with pytest.raises(UserError, match=r"t_star must lie in \(0, 1\], not 100; did you mean t_star=0.1\?"):
        diffpure(net, t_star=100)


@pytest.mark.parametrize("t_star", [0, -0.1, float("nan"), 1e6])
def test_an_impossible_time_is_an_error(net, t_star):
    with pytest.raises(UserError, match=r"t_star must (lie in \(0, 1\]|be a finite number)"):
        diffpure(net, t_star)


def test_an_unknown_solver_suggests_the_closest(net):
    with pytest.raises(UserError, match=r"Unknown solver 'dpm'\. Did you mean 'ddpm'\?"):
        diffpure(net, solver="dpm")


def test_a_time_per_image_needs_its_largest_value(net):
    with pytest.raises(UserError, match="t_max must say"):
        diffpure(net, t_star=lambda x: x.mean(dim=(1, 2, 3)))


@pytest.mark.parametrize(
    "t_star",
    [
        lambda x: torch.full((len(x),), 0.2),
        lambda x: torch.zeros(len(x)),
        lambda x: torch.full((len(x),), torch.nan),
        lambda x: torch.tensor(0.05),
        lambda x: torch.full((len(x), 1), 0.05),
    ],
    ids=["above t_max", "zero", "nan", "scalar", "wrong shape"],
)
def test_a_time_per_image_out_of_bounds_is_an_error_when_it_is_asked(x, net, t_star):
    purifier = Diffusion(net, VP(), SDE(dt=0.02), t_star, t_max=0.1)
    with pytest.raises(UserError, match="one time in"):
        purify(purifier, x, KEY)


def test_noise_beyond_what_the_denoiser_knows_is_an_error():
    denoiser = gaussian_mixture()
    denoiser.sigma_max = 0.5
    assert diffpure(denoiser, t_star=0.1).n_steps == 100
    with pytest.raises(UserError, match=r"noise sigma=1\.\d+, beyond the 0\.5 that this denoiser"):
        diffpure(denoiser, t_star=0.5)
    with pytest.raises(UserError, match="beyond the 0.5"):
        Diffusion(denoiser, EDM(), SDE(steps=3), lambda x: x.mean(dim=(1, 2, 3)), t_max=0.6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SDE(end=0.0),
        lambda: ODE(end=-0.01),
        lambda: Heun(sigma_min=0.0),
        lambda: Heun(rho=0.0),
        lambda: Langevin(level=0.0),
        lambda: Langevin(spread=float("nan")),
    ],
)
def test_samplers_refuse_to_divide_by_nothing(make):
    with pytest.raises(UserError, match="must be (positive|a finite number), not"):
        make()


def test_langevin_asks_for_the_noise_of_its_level_alone():
    denoiser = gaussian_mixture()
    denoiser.sigma_max = 0.5
    assert diffpure(denoiser, 1.0, "langevin").n_steps == 100
    with pytest.raises(UserError, match=r"level=0\.9 means noise .* beyond the 0\.5 .* choose a smaller level"):
        Diffusion(denoiser, VP(), Langevin(level=0.9), 0.1)


@pytest.mark.parametrize("cut", [False, True])
def test_steps_that_do_nothing_cost_nothing_for_a_time_of_all_as_for_each_ones_own(cut, net, x):
    counted = Counted(net)
    sampler, found = DDIM(steps=20, whole=True), []
    for t_star in (0.005, lambda images: torch.full((len(images),), 0.005)):
        counted.rows.clear()
        purifier = Diffusion(counted, DiscreteVP.linear(), sampler, t_star, t_max=0.005, cut=cut)
        found.append((purify(purifier, x, KEY), len(counted.rows)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == 5


def test_a_constant_time_per_image_is_the_constant_time(net, x):
    shared = Diffusion(net, VP(), SDE(dt=0.02), 0.07)
    alone = Diffusion(net, VP(), SDE(dt=0.02), lambda x: torch.full((len(x),), 0.07), t_max=0.1)
    assert torch.allclose(purify(shared, x, KEY), purify(alone, x, KEY), rtol=0, atol=1e-6)


def test_each_image_is_purified_at_its_own_time(net, x):
    times = torch.tensor([0.02, 0.04, 0.055, 0.07, 0.1])
    own = purify(Diffusion(net, VP(), SDE(dt=0.02), lambda x: times, t_max=0.1), x, KEY)
    for i, t in enumerate(times.tolist()):
        alone = purify(Diffusion(net, VP(), SDE(dt=0.02), t), x[i : i + 1], KEY.rng(torch.tensor([i])))
        assert torch.allclose(own[i : i + 1], alone, rtol=0, atol=1e-5)


def test_clamping_cuts_the_output_alone(net):
    x = images(5)
    free, cut = diffpure(net, steps=3), diffpure(net, steps=3, clamp=True)
    assert float(purify(free, x, KEY).min()) < 0
    assert torch.equal(purify(cut, x, KEY), purify(free, x, KEY).clamp(0, 1))


@pytest.mark.parametrize("sampler", [SDE(end=0.1), ODE(steps=2, end=0.06), Heun(3, sigma_min=0.5)])
def test_a_process_that_ends_above_its_start_is_refused(sampler, net):
    with pytest.raises(UserError, match="The sampler ends above t_star=0.05"):
        Diffusion(net, VP(), sampler, 0.05)
