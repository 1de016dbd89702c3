"""The one currency: a denoiser D(x, sigma), the estimate of E[x₀ | x₀ + sigma·z = x].

Images are on [0, 1] and sigma is in the same units. Everything else that networks predict is a change of variables,
which lives here and in ``preconditioning.py``: noise ε = (x − D)/sigma, score = (D − x)/sigma², and, on the
[-1, 1] scale of a schedule, ε and v predictions of x_t = s(t)·(2x − 1).
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core import outputs
from ..core.networks import looked_aside
from ..core.spec import runtime
from ..schedules import Schedule


@runtime_checkable
class Denoiser(Protocol):
    """D(x, sigma) for images x [b, c, h, w] and sigma [b]; good for sigma in [sigma_min, sigma_max], if it says so."""

    sigma_min: float
    sigma_max: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


def reach(denoiser: Callable) -> tuple[float, float]:
    """The smallest and the largest sigma that a denoiser is good for; all, where it does not say."""
    return getattr(denoiser, "sigma_min", 0.0), getattr(denoiser, "sigma_max", math.inf)


def column(values: Tensor, like: Tensor) -> Tensor:
    """Per-sample values [b] shaped and typed to multiply images like ``like``."""
    return values.to(like).view(-1, *[1] * (like.dim() - 1))


def denoise(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """D(x, sigma), which must be images like x."""
    return outputs.images(outputs.asked("The denoiser", denoiser, x, sigma.to(x)), x, "A denoiser")


def noise(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """The noise estimate (x − D)/sigma."""
    return (x - denoise(denoiser, x, sigma)) / column(sigma, x)


def score(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """The score ∇ log p_sigma(x) = (D − x)/sigma² (Tweedie)."""
    return (denoise(denoiser, x, sigma) - x) / column(sigma, x) ** 2


def eps_network(denoiser: Denoiser, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    """The ε-prediction ε(x_t, t) on a schedule's own scale, for code that expects one (diffusers, DiffPure)."""

    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        sigma = schedule.sigma(t.double())
        y = 0.5 + x_t / column(2 * torch.exp(schedule.log_scale(t.double())), x_t)
        return noise(denoiser, y, sigma)

    return eps


def v_network(denoiser: Denoiser, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    """The v-prediction v = √ᾱ·ε − √(1−ᾱ)·x₀ (Salimans and Ho, ICLR 2022) on a VP schedule's own scale."""
    eps = eps_network(denoiser, schedule)

    def v(x_t: Tensor, t: Tensor) -> Tensor:
        alpha = column(torch.exp(schedule.log_scale(t.double())), x_t)
        beta = torch.sqrt(1 - alpha**2)
        e = eps(x_t, t)
        return alpha * e - beta * (x_t - beta * e) / alpha

    return v


class Wrapper:
    """What is put around a denoiser, or another function of images; it is good for the same sigma."""

    inner: Callable[..., Tensor]

    @property
    def sigma_min(self) -> float:
        return reach(self.inner)[0]

    @property
    def sigma_max(self) -> float:
        return reach(self.inner)[1]


@dataclass(frozen=True)
class FixedBatch(Wrapper):
    """Calls a function of images (and sigma) with exactly ``size`` rows at a time, the last chunk padded.

    Floating-point results of a network may depend on the batch that it sees. With every call alike they do not, so a
    ledger comes out the same for any batch size. Rows are never mixed, so gradients pass through.
    """

    inner: Callable[..., Tensor]
    size: int

    def __call__(self, *args: Tensor) -> Tensor:
        n = len(args[0])
        missing = -n % self.size
        if missing:
            args = tuple(torch.cat([a, a[-1:].detach().expand(missing, *a.shape[1:])]) for a in args)
        parts = [outputs.tensor(self.inner(*(a[i : i + self.size] for a in args))) for i in range(0, n, self.size)]
        return torch.cat(parts)[:n] if n else args[0]


@dataclass(frozen=True)
class Clipped(Wrapper):
    """A denoiser whose estimate is cut to [0, 1] (``clip_denoised``); nothing flows back where it was cut."""

    inner: Denoiser = field(metadata={"role": "weights"})

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(self.inner, x, sigma).clamp(0, 1)


@dataclass(frozen=True)
class Autocast(Wrapper):
    """Runs a function of images (and sigma) in a lower precision; float64 stays what it is."""

    inner: Callable[..., Tensor]
    dtype: str = "bfloat16"

    def __call__(self, x: Tensor, *args: Tensor) -> Tensor:
        with torch.autocast(x.device.type, getattr(torch, self.dtype)):
            return outputs.tensor(self.inner(x, *args)).to(x)


@dataclass(eq=False)
class Count:
    """Rows that passed forward and backward through a network, and who is told, a row backward as two."""

    forward: int = 0
    backward: int = 0
    tell: Callable[[int], None] | None = None

    def note(self, forward: int = 0, backward: int = 0) -> None:
        self.forward += forward
        self.backward += backward
        if self.tell is not None:
            self.tell(forward + 2 * backward)


class Meter:
    """Counts what passes through networks, for every thread apart, since batches may run side by side."""

    def __init__(self):
        self._local = threading.local()

    def __deepcopy__(self, memo: dict) -> "Meter":
        """A copy of what it watches is counted apart."""
        return Meter()

    @property
    def here(self) -> Count:
        """The count of the thread that asks."""
        if not hasattr(self._local, "count"):
            self._local.count = Count()
        return self._local.count

    def note(self, out: Tensor) -> None:
        """Counts the rows of a network's output, and later those of its gradient."""
        if looked_aside():
            return
        count = self.here
        count.note(len(out))
        if out.requires_grad:
            out.register_hook(partial(_count_backward, count))

    @contextmanager
    def telling(self, tell: Callable[[int], None]) -> Iterator[None]:
        """Within, ``tell`` hears of every row that this thread counts."""
        count = self.here
        before, count.tell = count.tell, tell
        try:
            yield
        finally:
            count.tell = before

    def watch(self, fn: Callable[..., Tensor]) -> "Metered":
        """The same function, counted here."""
        return Metered(fn, self)


@dataclass(frozen=True)
class Metered(Wrapper):
    """A function of images whose rows are counted by a meter; results are untouched."""

    inner: Callable[..., Tensor]
    meter: Meter = runtime(None)

    def __call__(self, *args: Tensor) -> Tensor:
        out = outputs.tensor(self.inner(*args))
        self.meter.note(out)
        return out


def _count_backward(count: Count, grad: Tensor) -> None:
    count.note(backward=len(grad))
