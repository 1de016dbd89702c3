"""Preconditionings: how a raw network's output becomes D(x, sigma).

Each wraps a network ``net(input, conditioning)`` with conditioning [b]. Networks live on [-1, 1]: below v = 2x − 1 and
s = 2·sigma, so that v = v₀ + s·z. Only here do timesteps and parametrisations exist.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core import outputs
from ..schedules import Schedule
from .base import column


def ask(net: Callable[..., Any], x: Tensor, *conditioning: Tensor, variance: bool = False) -> Tensor:
    """What a raw network says of images [b, c, h, w] whose sides need not be multiples of what it works in.

    Those that are not are mirrored beyond their right and lower edge for the network, and cut to their size again. Of
    what it returns the tensor is taken (diffusers' ``.sample``), without the channels of a learned ``variance``.
    """
    if not len(x):  # which not every network takes
        return x
    multiple, (h, w) = getattr(net, "multiple", 1), x.shape[2:]
    given = outputs.taken(net, x)
    conditioning = tuple(value.to(given.dtype) if value.is_floating_point() else value for value in conditioning)
    if h % multiple or w % multiple:
        rows, columns = (_mirrored(side, multiple).to(x.device) for side in (h, w))
        given = given[:, :, rows][..., columns]
    out = outputs.picked(outputs.asked("The denoiser's network", net, given, *conditioning), lambda t: t.dim() == 4)
    if isinstance(out, Tensor) and out.dim() == 4:
        out = out[:, : x.shape[1] if variance else None]
        out = out[:, :, :h, :w] if out.shape[2:] == given.shape[2:] else out
    return outputs.images(out, x, "A denoiser's network").to(x.dtype)


def _mirrored(side: int, multiple: int) -> Tensor:
    """The pixels of a side, there and back again from its last one until their number is a multiple."""
    period = max(1, 2 * side - 2)
    there = torch.arange(side + -side % multiple) % period
    return torch.where(there < side, there, period - there)


class EDM(nn.Module):
    """Karras et al. (2022), table 1: D = c_skip·v + c_out·F(c_in·v, ln(s)/4)."""

    def __init__(self, net: nn.Module, sigma_data: float = 0.25, sigma_min: float = 0.001, sigma_max: float = 40.0):
        """``sigma_data`` is the standard deviation of the data on [0, 1] pixels; EDM's 0.5 on [-1, 1] is 0.25 here."""
        super().__init__()
        self.training = getattr(net, "training", False)
        self.net, self.sigma_data, self.sigma_min, self.sigma_max = net, sigma_data, sigma_min, sigma_max

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s, data = column(2 * sigma, outputs.floating(x)), 2 * self.sigma_data
        total = torch.sqrt(s**2 + data**2)
        v = 2 * x - 1
        raw = ask(self.net, v / total, torch.log(2 * sigma.to(x)) / 4)
        return ((data / total) ** 2 * v + s * data / total * raw + 1) / 2


class VPEps(nn.Module):
    """An ε-predictor on a VP schedule: D = v − s·ε(√ᾱ·v, k·t), with k·t the network's own time.

    ``time_scale`` is k (999 for the continuous DDPM++ of Song et al.). With ``discrete`` the network takes the index
    (int64) of the nearest step, N·t − 1 (Ho et al., guided-diffusion). More output channels (a learned variance) are
    cut.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, time_scale: float = 999.0, discrete: bool = False):
        super().__init__()
        self.training = getattr(net, "training", False)
        self.net, self.schedule, self.time_scale, self.discrete = net, schedule, time_scale, discrete
        ends = torch.tensor([schedule.dt, schedule.t_max], dtype=torch.float64)
        self.sigma_min, self.sigma_max = schedule.sigma(ends).tolist()

    def _time(self, sigma: Tensor, x: Tensor) -> Tensor:
        t = self.schedule.time(sigma.double())
        if self.discrete:
            return (t / self.schedule.dt).round().sub(1).clamp_min(0).long().to(x.device)
        return (t * self.time_scale).to(x)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = column(2 * sigma, outputs.floating(x))
        v = 2 * x - 1
        eps = ask(self.net, v / torch.sqrt(1 + s**2), self._time(sigma, x), variance=True)
        return (v - s * eps + 1) / 2


class VPredict(nn.Module):
    """A v-predictor on a VP schedule: x₀ = √ᾱ·x_t − √(1−ᾱ)·v(x_t, k·t), where √ᾱ = 1/√(1 + s²)."""

    def __init__(self, net: nn.Module, schedule: Schedule, time_scale: float = 999.0):
        super().__init__()
        self.training = getattr(net, "training", False)
        self.net, self.schedule, self.time_scale = net, schedule, time_scale
        ends = torch.tensor([schedule.dt, schedule.t_max], dtype=torch.float64)
        self.sigma_min, self.sigma_max = schedule.sigma(ends).tolist()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = column(2 * sigma, outputs.floating(x))
        total = torch.sqrt(1 + s**2)
        x_t = (2 * x - 1) / total
        raw = ask(self.net, x_t, (self.schedule.time(sigma.double()) * self.time_scale).to(x))
        return (x_t / total - s / total * raw + 1) / 2


class NCSN(nn.Module):
    """A unit-scaled score field without noise conditioning (NCSNv2, Song and Ermon 2020): D = x + sigma·F(x).

    The network takes [0, 1] images, as the published ones do; its field is sigma·score, minus the noise estimate.
    """

    def __init__(self, net: nn.Module, sigma_min: float = 0.01, sigma_max: float = 50.0):
        super().__init__()
        self.training = getattr(net, "training", False)
        self.net, self.sigma_min, self.sigma_max = net, sigma_min, sigma_max

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x + column(sigma, x) * ask(self.net, x)
