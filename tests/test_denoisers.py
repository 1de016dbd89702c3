"""Denoisers: preconditionings against their formulas, exact denoisers against brute force, wrappers."""

import math

import pytest
import torch
from torch import nn

from components import lively
from lustral.denoisers import base
from lustral.denoisers.base import Autocast, FixedBatch, Meter, eps_network, v_network
from lustral.denoisers.ideal import FiniteSet, GaussianMixture
from lustral.denoisers.nets.ddpm import DDPM
from lustral.denoisers.nets.ddpmpp import DDPMpp
from lustral.denoisers.nets.unet import UNet
from lustral.denoisers.preconditioning import EDM, NCSN, VPEps, VPredict
from lustral.schedules import VE, VP, DiscreteVP


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These tensors are small: a second thread would only wait for the first, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SIGMAS = torch.tensor([0.01, 0.2, 0.45, 1.3], dtype=torch.float64)


def noisy_images(n=4, channels=2, size=3, dtype=torch.float64):
    return 0.5 + torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)


class Recorder(nn.Module):
    """A nonlinear network that keeps what it was asked."""

    def __init__(self, extra_channels=0):
        super().__init__()
        self.extra = extra_channels

    def forward(self, x, conditioning):
        self.x, self.conditioning = x, conditioning
        self.out = torch.tanh(1.7 * x) + 0.1 * torch.sin(conditioning).view(-1, 1, 1, 1)
        return torch.cat([self.out, *[self.out * 0 + 9] * self.extra], dim=1)


def per_image(values):
    return values.view(-1, 1, 1, 1)


# ------------------------------------------------------------------------------------------------- preconditionings


def test_edm_is_table_one_of_karras():
    """On [-1, 1] with s = 2·sigma and σ_data = 0.5: c_skip, c_out, c_in and c_noise as printed."""
    net, x = Recorder(), noisy_images()
    out = EDM(net)(x, SIGMAS)
    s, data = per_image(2 * SIGMAS), 0.5
    c_skip, c_out = data**2 / (s**2 + data**2), s * data / torch.sqrt(s**2 + data**2)
    torch.testing.assert_close(net.x, (2 * x - 1) / torch.sqrt(s**2 + data**2))
    torch.testing.assert_close(net.conditioning, 0.25 * torch.log(2 * SIGMAS))
    torch.testing.assert_close(2 * out - 1, c_skip * (2 * x - 1) + c_out * net.out)


def test_edm_with_a_zero_network_is_the_linear_denoiser_of_its_data():
    """E[x₀ | x] for x₀ ~ N(½, sigma_data²): what the skip connection alone must be."""
    net = nn.Module()
    net.forward = lambda x, k: torch.zeros_like(x)
    exact = GaussianMixture(torch.full((1, 2, 3, 3), 0.5), torch.tensor([0.3**2], dtype=torch.float64))
    x = noisy_images()
    torch.testing.assert_close(EDM(net, sigma_data=0.3)(x, SIGMAS), exact(x, SIGMAS))


def test_continuous_vp_eps():
    """x₀ = (x_t − √(1−ᾱ)·ε)/√ᾱ with x_t = √ᾱ·(2x − 1) and the network's time 999·t; more channels are cut."""
    net, x, t = Recorder(extra_channels=2), noisy_images(), torch.tensor([0.01, 0.1, 0.5, 0.9], dtype=torch.float64)
    sigma = VP().sigma(t)
    out = VPEps(net, VP())(x, sigma)
    alpha_bar = per_image(torch.exp(-0.5 * 19.9 * t**2 - 0.1 * t))
    x_t = alpha_bar.sqrt() * (2 * x - 1)
    torch.testing.assert_close(net.x, x_t)
    torch.testing.assert_close(net.conditioning, 999 * t)
    torch.testing.assert_close(2 * out - 1, (x_t - torch.sqrt(1 - alpha_bar) * net.out) / alpha_bar.sqrt())


def test_discrete_vp_eps_asks_at_the_nearest_index():
    """Index i of Ho et al. stands after i + 1 betas; between two levels the nearer one is asked."""
    net, schedule = Recorder(), DiscreteVP.linear(n=100)
    alpha_bar = (1 - torch.tensor(schedule.betas, dtype=torch.float64)).cumprod(0)
    sigma = 0.5 * torch.sqrt((1 - alpha_bar) / alpha_bar)
    VPEps(net, schedule, discrete=True)(noisy_images(100), sigma)
    assert torch.equal(net.conditioning, torch.arange(100, dtype=torch.float64))
    t = torch.tensor([0.1049, 0.1051, 0.001], dtype=torch.float64)
    VPEps(net, schedule, discrete=True)(noisy_images(3), schedule.sigma(t))
    assert net.conditioning.tolist() == [9, 10, 0]


def test_v_prediction():
    """x₀ = √ᾱ·x_t − √(1−ᾱ)·v (Salimans and Ho 2022)."""
    net, x, t = Recorder(), noisy_images(), torch.tensor([0.01, 0.1, 0.5, 0.9], dtype=torch.float64)
    out = VPredict(net, VP(), time_scale=10.0)(x, VP().sigma(t))
    alpha_bar = per_image(torch.exp(-0.5 * 19.9 * t**2 - 0.1 * t))
    x_t = alpha_bar.sqrt() * (2 * x - 1)
    torch.testing.assert_close(net.x, x_t)
    torch.testing.assert_close(net.conditioning, 10 * t)
    torch.testing.assert_close(2 * out - 1, alpha_bar.sqrt() * x_t - torch.sqrt(1 - alpha_bar) * net.out)


def test_ncsn_adds_sigma_times_the_field():
    x = noisy_images()
    torch.testing.assert_close(NCSN(torch.sin)(x, SIGMAS), x + per_image(SIGMAS) * torch.sin(x))


NETS = {
    "unet": (lambda: UNet(1, 8, mult=(1, 2), blocks=1, patch=2), 4),
    "ddpm": (lambda: DDPM(1, 8, mult=(1, 2, 2), blocks=1, attention=(), groups=4), 4),
    "ddpm++": (lambda: DDPMpp(1, 8, mult=(1, 2, 2), blocks=1, attention=()), 4),
}


@pytest.mark.parametrize(("make", "multiple"), NETS.values(), ids=NETS)
@pytest.mark.parametrize("wrap", [EDM, lambda net: VPEps(net, VP()), lambda net: VPredict(net, VP())])
def test_images_of_any_size_are_mirrored_to_what_a_network_works_in(make, multiple, wrap):
    """As PyTorch mirrors them; those that fit are seen as they are, and gradients pass."""
    torch.manual_seed(0)
    net = lively(make()).eval()
    denoiser, x, sigma = wrap(net), torch.rand(2, 1, 8, 8, requires_grad=True), torch.tensor([0.1, 0.4])
    mirrored = torch.nn.functional.pad(x[:, :, :7, :5], (0, 3, 0, 1), mode="reflect")
    found = denoiser(x[:, :, :7, :5], sigma)
    assert torch.allclose(found, denoiser(mirrored, sigma)[:, :, :7, :5], atol=1e-6)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert (grad[:, :, :7, :5] != 0).all()
    assert denoiser(x[:, :, :1, :2], sigma).shape == (2, 1, 1, 2)
    assert net.multiple == multiple


def mixture(dtype=torch.float64):
    means = torch.rand(3, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    variances, weights = torch.tensor([[0.01, 0.04, 0.09], [0.2, 0.5, 0.3]], dtype=dtype)
    return GaussianMixture(means, variances, weights)


class Lifted(nn.Module):
    """A function of (x_t, k·t) as a network."""

    def __init__(self, function, time_scale):
        super().__init__()
        self.function, self.time_scale = function, time_scale

    def forward(self, x, k):
        return self.function(x, k / self.time_scale)


@pytest.mark.parametrize("schedule", [VP(), DiscreteVP.linear(), DiscreteVP.cosine(60)], ids=["vp", "linear", "cosine"])
@pytest.mark.parametrize(("predict", "wrap"), [(eps_network, VPEps), (v_network, VPredict)], ids=["eps", "v"])
def test_predictions_wrapped_back_give_the_denoiser(schedule, predict, wrap):
    exact, x = mixture(), noisy_images()
    again = wrap(Lifted(predict(exact, schedule), 999.0), schedule, time_scale=999.0)
    torch.testing.assert_close(again(x, SIGMAS), exact(x, SIGMAS), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("wrap", [VPEps, VPredict])
def test_range_of_noise_is_that_of_the_schedule(wrap):
    schedule = DiscreteVP.linear(n=20)
    alpha_bar = (1 - torch.tensor(schedule.betas, dtype=torch.float64)).cumprod(0)
    ends = (0.5 * torch.sqrt(1 / alpha_bar - 1))[[0, -1]].tolist()
    denoiser = wrap(Recorder(), schedule)
    assert [denoiser.sigma_min, denoiser.sigma_max] == pytest.approx(ends)


def test_float32_images_get_float32_answers():
    """Whatever the type of sigma: samplers hand over float64 levels."""
    x = noisy_images(dtype=torch.float32)
    net = Recorder()
    for denoiser in (EDM(net), VPEps(net, VP()), VPredict(net, VP()), NCSN(torch.sin), mixture(torch.float32)):
        assert denoiser(x, SIGMAS).dtype == torch.float32


def test_ve_schedule_has_no_predictions_of_its_own_scale():
    """On a VE schedule the scale is 1, so ε of x_t = 2x − 1 is the plain noise estimate."""
    x, t = noisy_images(), torch.tensor([0.1, 0.2, 0.4, 0.5], dtype=torch.float64)
    eps = eps_network(mixture(), VE())(2 * x - 1, t)
    torch.testing.assert_close(eps, base.noise(mixture(), x, VE().sigma(t)))


# --------------------------------------------------------------------------------------------------- exact denoisers


def test_finite_set_is_the_weighted_mean_of_its_points():
    points = torch.rand(5, 2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = noisy_images()
    expected = torch.zeros_like(x)
    for i, sigma in enumerate(SIGMAS.tolist()):
        logs = [-float(((x[i] - p) ** 2).sum()) / (2 * sigma**2) for p in points]
        weights = [math.exp(v - max(logs)) for v in logs]
        expected[i] = sum(w * p for w, p in zip(weights, points, strict=True)) / sum(weights)
    torch.testing.assert_close(FiniteSet(points)(x, SIGMAS), expected, rtol=1e-9, atol=1e-12)


def test_finite_set_finds_its_point_again():
    points = torch.rand(5, 2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = points + 1e-3
    torch.testing.assert_close(FiniteSet(points)(x, torch.full((5,), 1e-3)), points, rtol=0, atol=1e-12)


def log_density(x, sigma):
    """Of the mixture with noise of standard deviation sigma, from torch.distributions."""
    m = mixture()
    spread = torch.sqrt(m.variances + sigma[:, None] ** 2)[..., None]
    parts = torch.distributions.Normal(m.means.flatten(1), spread).log_prob(x.flatten(1)[:, None]).sum(-1)
    return torch.logsumexp(m.weights.log() + parts, dim=1)


def test_mixture_obeys_tweedie():
    """D = x + sigma²·∇ log p_sigma(x), with the gradient by autograd."""
    x = noisy_images().requires_grad_()
    gradient = torch.autograd.grad(log_density(x, SIGMAS).sum(), x)[0]
    torch.testing.assert_close(mixture()(x, SIGMAS), x + per_image(SIGMAS) ** 2 * gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(base.score(mixture(), x, SIGMAS), gradient, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(base.noise(mixture(), x, SIGMAS), -per_image(SIGMAS) * gradient, rtol=1e-8, atol=1e-10)


def test_mixture_in_one_dimension_is_the_integral():
    """∫ x₀·p(x₀)·N(x; x₀, sigma²) dx₀ over the same without x₀, by the trapezoidal rule."""
    means, variances, weights = torch.tensor([[0.2, 0.8], [0.01, 0.03], [0.3, 0.7]], dtype=torch.float64)
    m = GaussianMixture(means.view(2, 1, 1, 1), variances, weights)
    x0 = torch.linspace(-2, 3, 20_001, dtype=torch.float64)
    prior = torch.distributions.Normal(means, variances.sqrt()).log_prob(x0[:, None]).exp() @ weights
    for x, sigma in [(0.4, 0.3), (0.5, 0.05), (1.2, 0.7)]:
        joint = prior * torch.exp(-((x - x0) ** 2) / (2 * sigma**2))
        found = m(torch.full((1, 1, 1, 1), x, dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64))
        assert float(found) == pytest.approx(float((x0 * joint).sum() / joint.sum()), abs=1e-10)


def test_mixture_of_points_is_a_finite_set():
    points = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = noisy_images()
    limit = GaussianMixture(points, torch.full((4,), 1e-14, dtype=torch.float64))
    torch.testing.assert_close(limit(x, SIGMAS), FiniteSet(points)(x, SIGMAS), rtol=1e-8, atol=1e-8)


def test_responsibilities_without_noise_are_bayes_rule():
    x = noisy_images()
    m, zero = mixture(), torch.zeros(4, dtype=torch.float64)
    components = torch.distributions.Normal(m.means.flatten(1), m.variances.sqrt()[:, None])
    joint = components.log_prob(x.flatten(1)[:, None]).sum(-1).exp() * m.weights
    torch.testing.assert_close(m.responsibilities(x, zero), joint / joint.sum(1, keepdim=True), rtol=1e-8, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- wrappers


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return lively(UNet(channels=2, width=16, mult=(1, 2), blocks=1, attention=(1,)))


@pytest.mark.parametrize("n", [1, 7, 64])
def test_fixed_batch_gives_each_row_the_same_bits_in_any_batch(unet, n):
    denoiser = FixedBatch(EDM(unet), 4)
    x = noisy_images(64, size=8, dtype=torch.float32)
    sigma = torch.linspace(0.05, 1, 64)
    whole = denoiser(x, sigma)
    for start in range(0, 64, n):
        rows = slice(start, start + n)
        assert torch.equal(denoiser(x[rows], sigma[rows]), whole[rows])
    torch.testing.assert_close(whole, EDM(unet)(x, sigma), rtol=1e-4, atol=1e-5)


def test_fixed_batch_calls_in_one_size_only():
    seen = []

    def spy(x, sigma):
        seen.append((len(x), len(sigma)))
        return x * per_image(sigma)

    x = noisy_images(7)
    assert torch.equal(FixedBatch(spy, 3)(x, torch.arange(7.0)), x * per_image(torch.arange(7.0)))
    assert seen == [(3, 3)] * 3
    assert FixedBatch(spy, 3)(x[:0], torch.zeros(0)).shape == (0, 2, 3, 3)


@pytest.mark.parametrize("n", [1, 7, 64])
def test_fixed_batch_passes_gradients(n):
    """Padding repeats the last row but must add nothing to its gradient."""
    x, sigma = noisy_images(n).requires_grad_(), torch.linspace(0.1, 1, n, dtype=torch.float64)
    weight = torch.cos(torch.arange(x.numel(), dtype=torch.float64)).view_as(x)
    plain = torch.autograd.grad((weight * mixture()(x, sigma)).sum(), x)[0]
    batched = torch.autograd.grad((weight * FixedBatch(mixture(), 4)(x, sigma)).sum(), x)[0]
    torch.testing.assert_close(batched, plain, rtol=1e-12, atol=1e-14)


def test_meter_counts_rows_forward_and_backward():
    meter = Meter()
    watched = meter.watch(mixture())
    x = noisy_images(4)
    assert torch.equal(watched(x, SIGMAS), mixture()(x, SIGMAS))
    assert (meter.here.forward, meter.here.backward) == (4, 0)
    x.requires_grad_()
    out = watched(x, SIGMAS) + watched(x[:3], SIGMAS[:3]).sum()
    assert (meter.here.forward, meter.here.backward) == (11, 0)
    out.sum().backward()
    assert (meter.here.forward, meter.here.backward) == (11, 7)


def test_wrappers_keep_the_range_of_the_denoiser():
    inner = EDM(Recorder(), sigma_min=0.03, sigma_max=7.0)
    for wrapped in (FixedBatch(inner, 4), Autocast(inner), Meter().watch(inner)):
        assert (wrapped.sigma_min, wrapped.sigma_max) == (0.03, 7.0)


def test_autocast_is_close_and_comes_back_in_float32(unet):
    """bfloat16 keeps 8 bits: each of the some ten layers rounds by 2⁻⁹ relative, so 5 % of the norm is generous."""
    x, sigma = noisy_images(size=8, dtype=torch.float32), SIGMAS.float()
    full, cast = EDM(unet)(x, sigma), Autocast(EDM(unet))(x, sigma)
    assert cast.dtype == torch.float32
    assert not torch.equal(cast, full)
    assert (cast - full).norm() < 0.05 * full.norm()
    raw = Autocast(lambda x, sigma: unet.first(x))
    assert raw(x, sigma).dtype == torch.float32
