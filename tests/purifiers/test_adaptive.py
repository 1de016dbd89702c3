import math

import pytest
import torch
from torch import Tensor

from components import Counted, finite_set, gaussian_mixture, images
from lustral.core.errors import UserError
from lustral.core.kernel import purify, trace
from lustral.core.noise import Key
from lustral.purifiers.adaptive import Adaptive, AdaptivePublished, UnitField
from lustral.purifiers.presets import adp, adp_gated

KEY = Key(51)
SHAPE = (1, 4, 4)
DENOISERS = {"finite-set": finite_set(SHAPE, torch.float64), "mixture": gaussian_mixture(SHAPE, torch.float64)}
exact_denoiser = pytest.mark.parametrize("denoiser", DENOISERS.values(), ids=DENOISERS.keys())


def adp_by_hand(field, y: Tensor, steps: int, tau: float, grid: bool = False) -> tuple[list[Tensor], list[list[float]]]:
    """ADP from its equations (δ = 10⁻³, λ = 0.05, α in [10⁻⁵, 0.1]), an image at a time, after screening.

    Returns the images after every step, and each image's step sizes until it froze. With ``grid`` images go to the
    field's grid once and back after every step, as in the published code.
    """
    if grid:
        y = y * 255 / 256 + 1 / 512
    shown, alphas = [y], [[] for _ in y]
    moving = [True] * len(y)
    for _ in range(steps):
        rows = []
        for k, image in enumerate(shown[-1].split(1)):
            if moving[k]:
                f = field(image)
                z = (f * field(image + 1e-3 * f)).sum() / (f * f).sum()
                alpha = (0.05 * 1e-3 / (1 - z)).clamp(1e-5, 0.1)
                alphas[k].append(alpha.item())
                moving[k] = alphas[k][-1] > tau
                if moving[k]:
                    image = image + alpha * f
            if grid:
                image = image * 256 / 255 - 1 / 510
            rows.append(image.clamp(0, 1))
        shown.append(torch.cat(rows))
    return shown, alphas


def some(n: int = 6) -> Tensor:
    return images(n, SHAPE, torch.float64)


def screened(x: Tensor, sigma: float) -> Tensor:
    return (x + sigma * KEY.rng(len(x)).fold("init").normal(x)).clamp(0, 1)


def median_step(field, y: Tensor) -> float:
    """A τ below some images' step sizes and above others'."""
    sizes = sorted(a for image in adp_by_hand(field, y, 6, 0.0)[1] for a in image)
    return sizes[len(sizes) // 2] + 1e-7


@exact_denoiser
def test_the_field_is_sigma_times_the_score(denoiser):
    x = some().requires_grad_()
    if denoiser is DENOISERS["finite-set"]:
        means, variance, weights = denoiser.points, x.new_full((5,), 0.04), x.new_full((5,), 0.2)
    else:
        means, variance, weights = denoiser.means, denoiser.variances + 0.04, denoiser.weights
    distance = (x[:, None] - means).square().flatten(2).sum(2)
    log_p = torch.logsumexp(weights.log() - 8 * variance.log() - distance / (2 * variance), dim=1)
    score = torch.autograd.grad(log_p.sum(), x)[0]
    assert torch.allclose(UnitField(denoiser, 0.2)(x), 0.2 * score, rtol=0, atol=1e-9)


@exact_denoiser
@pytest.mark.parametrize("sigma", [0.0, 0.15])
@pytest.mark.parametrize("published", [False, True])
def test_adp_follows_its_equations(denoiser, sigma, published):
    x, field = some(), UnitField(denoiser, 0.2)
    tau = median_step(field, screened(x, sigma))
    purifier = adp(denoiser, sigma, steps=6, field_sigma=0.2, tau=tau, published=published)
    expected, alphas = adp_by_hand(field, screened(x, sigma), 6, tau, grid=published)
    assert len({len(image) for image in alphas}) > 1, "images should freeze at different steps here"

    for found, wanted in zip(trace(purifier, x, KEY), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-9)

    state = purifier.init(x, KEY.rng(len(x)).fold("init"))
    for i in range(6):
        state = purifier.step(i, state, KEY.rng(len(x)).fold("step", i))
        for k, sizes in enumerate(alphas):
            assert float(state.alpha[k]) == pytest.approx(sizes[min(i, len(sizes) - 1)], rel=1e-6)
            assert bool(state.moving[k]) == (sizes[min(i, len(sizes) - 1)] > tau)


@pytest.mark.parametrize("published", [False, True])
def test_the_exact_gradient_equals_plain_autograd_on_the_equations(published):
    """Through the field and the step sizes, some of which are at a bound and some images of which are frozen."""
    x, field = some().requires_grad_(), UnitField(DENOISERS["mixture"], 0.2)
    tau = median_step(field, screened(x, 0.15))
    purifier = adp(DENOISERS["mixture"], 0.15, steps=6, field_sigma=0.2, tau=tau, published=published)
    shown, alphas = adp_by_hand(field, screened(x, 0.15), 6, tau, grid=published)
    assert {1e-5, 0.1} < {size for image in alphas for size in image}
    assert len({len(image) for image in alphas}) > 1
    upstream = KEY.fold("upstream").rng(len(x)).normal(x)
    found = purify(purifier, x, KEY)
    torch.testing.assert_close(found, shown[-1], rtol=0, atol=1e-9)
    grad, wanted = (torch.autograd.grad(out, x, upstream)[0].flatten(1) for out in (found, shown[-1]))
    print(wanted, (grad - wanted).abs().max())
    torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-9)


@exact_denoiser
def test_a_frozen_image_costs_no_more_field_calls(denoiser):
    x, field = some(), UnitField(denoiser, 0.2)
    tau = median_step(field, screened(x, 0.15))
    alphas = adp_by_hand(field, screened(x, 0.15), 6, tau)[1]
    counted = Counted(denoiser)
    purify(adp(counted, 0.15, steps=6, field_sigma=0.2, tau=tau), x, KEY)
    moving = [sum(len(image) > i for image in alphas) for i in range(6)]
    assert moving[-1] < moving[0] == len(x)
    assert counted.rows == [rows for rows in moving if rows for _ in range(2)]
    restless = Counted(denoiser)
    purify(made := adp(restless, 0.15, steps=6, tau=0.0), x, KEY)
    assert restless.rows == [len(x)] * made.calls


@pytest.mark.parametrize("spread", [0.3, 1.0, 1.6])
def test_a_linear_field_loses_the_share_lambda_per_step(spread):
    """F = −(x − m)/s gives z = 1 − δ/s, hence α = λs and x_T − m = (1 − λ)^T (x − m)."""
    x = some()
    purifier = Adaptive(lambda x: -(x - 0.4) / spread, sigma=0.0, steps=7, lam=0.05)
    assert torch.allclose(purify(purifier, x, KEY), 0.4 + 0.95**7 * (x - 0.4), rtol=0, atol=1e-10)


def test_a_constant_field_is_followed_at_the_largest_step():
    x = torch.full((2, 1, 2, 2), 0.5)
    seen = list(trace(Adaptive(torch.ones_like, sigma=0.0, steps=6), x, KEY))
    assert [round(float(y[0, 0, 0, 0]), 5) for y in seen] == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0]


def test_a_growing_field_freezes_at_once():
    x, calls = some(), []

    def grow(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    purifier = Adaptive(grow, sigma=0.0, steps=5)
    assert torch.equal(purify(purifier, x, KEY), x)
    assert calls == [len(x), len(x)]
    state = purifier.step(0, purifier.init(x, KEY.rng(len(x))), KEY.rng(len(x)))
    assert (state.alpha == purifier.alpha_min).all()


def test_an_image_at_rest_stays_without_nan_in_value_or_gradient():
    x = some()
    rest = torch.zeros_like(x)
    rest[::2] = 1.0
    adaptive = Adaptive(lambda x: rest * (0.3 - x), sigma=0.0, steps=1)
    for purifier in (adaptive, AdaptivePublished(adaptive)):
        x = x.detach().requires_grad_()
        out = purify(purifier, x, KEY)
        grad = torch.autograd.grad(out.sum(), x)[0]
        assert torch.isfinite(out).all()
        assert torch.isfinite(grad).all()
        assert torch.allclose(out[1::2], x[1::2], rtol=0, atol=1e-12)
        assert (out[::2] != x[::2]).all()


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_the_published_code_stretches_contrast_by_256_over_255_per_further_step(steps):
    x = 0.3 + 0.4 * some()
    resting = Adaptive(torch.zeros_like, sigma=0.0, steps=steps)
    assert torch.equal(purify(resting, x, KEY), x)
    expected = 0.5 + (256 / 255) ** (steps - 1) * (x - 0.5)
    assert torch.allclose(purify(AdaptivePublished(resting), x, KEY), expected, rtol=0, atol=1e-12)


def test_stretching_does_not_depend_on_whether_neighbours_still_move():
    x = some(2)

    def first_moves(x: Tensor) -> Tensor:
        return torch.cat([0.3 - x[:1], torch.zeros_like(x[1:])])

    together = purify(AdaptivePublished(Adaptive(first_moves, sigma=0.0)), x, KEY)
    alone = purify(AdaptivePublished(Adaptive(torch.zeros_like, sigma=0.0)), x[1:], KEY)
    assert torch.equal(together[1:], alone)


def test_gaussian_screening_adds_noise_and_clamps():
    x = some()
    state = Adaptive(torch.zeros_like, sigma=0.4).init(x, KEY.rng(len(x)))
    assert torch.equal(state.x, (x + 0.4 * KEY.rng(len(x)).normal(x)).clamp(0, 1))
    assert 0.0 in state.x
    assert 1.0 in state.x


def test_binary_screening_has_the_mean_absolute_value_of_the_gaussian():
    x = torch.full((50, 1, 8, 8), 0.5, dtype=torch.float64)
    noise = Adaptive(torch.zeros_like, sigma=0.1, screen="binary").init(x, KEY.rng(50)).x - x
    assert torch.allclose(noise.abs(), torch.tensor(0.1 * math.sqrt(2 / math.pi), dtype=torch.float64), rtol=1e-7)
    assert abs(float(noise.sign().mean())) < 4 / math.sqrt(noise.numel())
    gaussian = Adaptive(torch.zeros_like, sigma=0.1).init(x, KEY.rng(50)).x - x
    assert float(gaussian.abs().mean()) == pytest.approx(float(noise.abs().mean()), rel=4 / math.sqrt(noise.numel()))


def test_gated_adp_gives_little_noise_to_images_with_a_small_field():
    denoiser = gaussian_mixture(dtype=torch.float64)
    x = 0.3 + 0.4 * images(8, dtype=torch.float64)
    norms = UnitField(denoiser, 0.1)(x).flatten(1).norm(dim=1)
    threshold = float(norms.median()) + 1e-6
    purifier = adp_gated(denoiser, 0.1, threshold=threshold, share=0.2)
    noise = next(trace(purifier, x, KEY)) - x
    spread = noise.flatten(1).std(dim=1)
    suspicious = norms > threshold
    assert 0 < int(suspicious.sum()) < len(x)
    tolerance = 4 / math.sqrt(2 * x[0].numel())
    assert torch.allclose(spread[suspicious], torch.tensor(0.1, dtype=torch.float64), rtol=tolerance)
    assert torch.allclose(spread[~suspicious], torch.tensor(0.02, dtype=torch.float64), rtol=tolerance)


@pytest.mark.parametrize(("options", "level"), [({}, 0.2), ({"field_sigma": 0.1}, 0.1)], ids=["default", "given"])
def test_gated_adp_asks_the_field_at_one_level_for_all(net, options, level):
    purifier = adp_gated(net, 0.2, threshold=1.3, **options)
    levels = {purifier.condition.field.sigma, purifier.then.field.sigma, purifier.otherwise.field.sigma}
    assert levels == {level}
    assert (purifier.then.sigma, purifier.otherwise.sigma) == (0.2, 0.2 * 0.2)


@pytest.mark.parametrize(
    "options",
    [{"sigma": -0.1}, {"steps": 0}, {"delta": 0.0}, {"lam": 0.0}, {"lam": 1.0}, {"alpha_min": 0.2}, {"screen": "salt"}],
    ids=str,
)
def test_impossible_constants_are_errors(options):
    with pytest.raises(UserError, match="ADP"):
        Adaptive(torch.zeros_like, **options)


def test_a_field_is_asked_only_at_noise_that_its_network_knows():
    denoiser = finite_set(SHAPE)
    with pytest.raises(UserError, match=r"sigma=20000, beyond the 1e\+04 of this denoiser"):
        adp(denoiser, 2e4)
    for sigma in (math.nan, -0.1):
        with pytest.raises(UserError, match="ADP needs sigma ≥ 0|finite number"):
            adp(denoiser, sigma)
    assert purify(adp_gated(denoiser, 0.0, threshold=1.0, steps=2), images(3, SHAPE), 0).isfinite().all()
