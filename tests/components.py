"""The components that the tests share: small exact and network denoisers, and one purifier of every kind."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from lustral.core.noise import Key, Rng
from lustral.core.purifier import Purifier
from lustral.denoisers.base import Denoiser
from lustral.denoisers.ideal import FiniteSet, GaussianMixture
from lustral.denoisers.nets.unet import UNet
from lustral.denoisers.preconditioning import EDM
from lustral.purifiers.compose import chain, from_function, repeat, when
from lustral.purifiers.diffusion import Diffusion
from lustral.purifiers.guided import Robust
from lustral.purifiers.presets import adbm, adp, adp_gated, diffpure, gdmp, gnsp, ssni
from lustral.purifiers.sample_specific import Reference, ScoreNorm
from lustral.samplers import DDIM, DDPM, ODE, SDE, Heun, Langevin, OneShot
from lustral.schedules import VP, DiscreteVP

SHAPE = (1, 8, 8)
# ADP's step sizes on ``images`` with ``net_denoiser`` lie on both sides of it: some samples freeze on the way.
TAU = 0.072


def images(n: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    """n smooth test images in (0, 1) from dark to bright, the same at every call."""
    rng = Key(1, ("images",)).rng(n)
    smooth = nn.functional.interpolate(rng.uniform(torch.empty(n, shape[0], 2, 2)), shape[1:], mode="bilinear")
    level = torch.linspace(0.1, 0.6, n).view(-1, 1, 1, 1)
    texture = 0.1 * rng.fold("texture").normal(torch.empty(n, *shape))
    return (level + 0.3 * smooth + texture).clamp(0.02, 0.98).to(dtype)


def scramble(net: nn.Module, seed: int = 23) -> nn.Module:
    """Fills every weight as after training: none is zero, activations keep their size. Uses addressed noise alone."""
    for name, p in net.named_parameters():
        z = Key(seed, ("weights", name)).rng(1).normal(p.detach()[None])[0]
        with torch.no_grad():
            if p.dim() > 1:
                p.copy_(z / p[0].numel() ** 0.5)
            else:
                p.copy_(0.1 * z + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return net.eval().requires_grad_(False)


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every zero-initialised weight replaced by noise, as after training."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.abs().sum() == 0:
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return module


@cache
def net_denoiser() -> EDM:
    """A one-level U-Net denoiser without zero weights."""
    return scramble(EDM(UNet(channels=1, width=8, mult=(1,), blocks=1), sigma_data=0.5))


def finite_set(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> FiniteSet:
    """The exact denoiser of five images."""
    return FiniteSet(Key(3).rng(5).uniform(torch.empty(5, *shape)).to(dtype))


def gaussian_mixture(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> GaussianMixture:
    """The exact denoiser of three Gaussians of different spread and weight."""
    means = 0.2 + 0.6 * Key(4).rng(3).uniform(torch.empty(3, *shape))
    variances, weights = torch.tensor([[0.02, 0.05, 0.1], [0.5, 0.3, 0.2]], dtype=dtype)
    return GaussianMixture(means.to(dtype), variances, weights)


class Counted:
    """A denoiser that remembers the number of rows of every call."""

    def __init__(self, inner: Denoiser):
        self.inner, self.rows = inner, []
        self.sigma_min, self.sigma_max = inner.sigma_min, inner.sigma_max

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.inner(x, sigma)


def brightness(x: Tensor) -> Tensor:
    """A time between 0.03 and 0.09 for each image, differentiable in the image."""
    return 0.03 + 0.06 * x.mean(dim=(1, 2, 3))


def bright(x: Tensor) -> Tensor:
    """Whether an image is brighter than mid-grey."""
    return x.mean(dim=(1, 2, 3)) > 0.5


def jitter(x: Tensor, rng: Rng) -> Tensor:
    """A user's own randomised transformation."""
    return (x + 0.05 * rng.normal(x)).sigmoid()


def squash(x: Tensor) -> Tensor:
    """A user's own deterministic transformation."""
    return x - 0.1 * torch.sin(6 * x)


# Score norms of ``images`` at the noise of these times of ``VP`` lie on both sides of its mean.
TIMES = (0.02, 0.03)
REFERENCE = Reference(mean=10.0, std=5.0, low=2.0, high=16.0, images=5)


def sample_specific(purifier: Purifier, **options) -> Purifier:
    """SSNI around a purifier of these tests."""
    first = purifier.stages[0] if hasattr(purifier, "stages") else purifier
    times = first.schedule.time(VP().sigma(torch.tensor(TIMES, dtype=torch.float64)))
    return ssni(purifier, REFERENCE, norm=ScoreNorm(first.denoiser, first.schedule, tuple(times.tolist())), **options)


@dataclass(frozen=True)
class Smooth:
    """A classifier in closed form: a smooth representation of four parts of an image, and logits that are sines."""

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))

    def head(self, features: Tensor) -> Tensor:
        return torch.sin(5 * features[:, :3])


PURIFIERS: dict[str, Callable[[Denoiser], Purifier]] = {
    "sde": lambda d: diffpure(d, 0.1, SDE(dt=0.02)),
    "sde-steps": lambda d: diffpure(d, 0.1, "sde", steps=4),
    "sde-mean": lambda d: diffpure(d, 0.1, "sde-mean", dt=0.02),
    "ode": lambda d: diffpure(d, 0.1, ODE(dt=0.02)),
    "ddpm-small": lambda d: diffpure(d, 0.1, DDPM("small", dt=0.02)),
    "ddpm-large": lambda d: diffpure(d, 0.1, DDPM("large", steps=4), schedule=DiscreteVP.linear(), clamp=True),
    "ddim": lambda d: diffpure(d, 0.1, DDIM(steps=4)),
    "ddim-eta": lambda d: diffpure(d, 0.1, DDIM(eta=0.7, steps=4)),
    "heun": lambda d: diffpure(d, 0.1, Heun(steps=3, sigma_min=0.02)),
    "one-shot": lambda d: diffpure(d, 0.1, OneShot()),
    "langevin": lambda d: diffpure(d, 0.1, Langevin(dt=0.02)),
    "per-sample": lambda d: Diffusion(d, VP(), SDE(dt=0.02), brightness, t_max=0.09),
    "per-sample-heun": lambda d: Diffusion(d, VP(), Heun(steps=3, sigma_min=0.02), brightness, t_max=0.09),
    "per-sample-langevin": lambda d: Diffusion(d, VP(), Langevin(dt=0.02), brightness, t_max=0.09),
    "adp": lambda d: adp(d, 0.2, steps=4, tau=TAU),
    "adp-binary": lambda d: adp(d, 0.2, steps=3, screen="binary"),
    "adp-published": lambda d: adp(d, 0.2, steps=4, tau=TAU, published=True),
    "adp-gated": lambda d: adp_gated(d, 0.2, threshold=1.3, steps=3),
    "chain": lambda d: chain(from_function(squash), diffpure(d, 0.05, DDIM(steps=2)), adp(d, 0.1, steps=2)),
    "repeat": lambda d: repeat(diffpure(d, 0.05, DDPM(steps=2)), 3),
    "when": lambda d: when(bright, diffpure(d, 0.1, SDE(steps=4)), from_function(jitter, steps=2)),
    "gnsp": lambda d: gnsp(d, (2, 3), DiscreteVP.linear(n=50)),
    "gdmp": lambda d: gdmp(d, 0.06, rounds=2, steps=2, strength=30.0),
    "gdmp-clear": lambda d: gdmp(d, 0.06, rounds=2, steps=2, strength=30.0, noised=False),
    "gdmp-ssim": lambda d: gdmp(d, 0.06, rounds=2, steps=2, likeness="ssim"),
    "guided": lambda d: Diffusion(d, VP(), SDE(steps=3), 0.06, guidance=Robust(Smooth())),
    "adbm": lambda d: adbm(d, 0.1),
    "ssni": lambda d: sample_specific(diffpure(d, 0.1, "sde", steps=3)),
    "ssni-linear": lambda d: sample_specific(diffpure(d, 0.1, DDIM(dt=0.02)), law="linear", bias=0.01),
    "ssni-gdmp": lambda d: sample_specific(gdmp(d, 0.06, rounds=2, steps=2, strength=30.0)),
    "ssni-gnsp": lambda d: sample_specific(gnsp(d, (6, 8), DiscreteVP.linear(n=50))),
    "function": lambda d: from_function(jitter, steps=3),
    "function-plain": lambda d: from_function(squash, steps=2),
}
WITHOUT_NET = {"function", "function-plain"}
IN_RANGE = {"adbm", "adp", "adp-binary", "adp-published", "adp-gated", "chain", "ddpm-large"}


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """A classifier in eval mode with moving averages from ``x`` and no weight at its initial value."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        model.train()(x)
    return model.eval()


def check_weights_matter(model: nn.Module, x: Tensor) -> None:
    """A classifier's loss has a gradient for every weight, and for its images."""
    x = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), torch.arange(len(x))).backward()
    for name, tensor in [("x", x), *model.named_parameters()]:
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name
    model.zero_grad(set_to_none=True)
