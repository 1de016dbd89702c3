"""Reverse processes as tables.

In the variance-exploding view y = x_t / s(t), mapped to [0, 1], one step of every sampler here is a row

    y ← ½ + a·(y − ½) + b·(D(y, sigma) − ½) + c·z + pull·(m − ½)

with fresh standard normal z. ½ is the centre of the image range, where the processes that live on [-1, 1] have their
zero. The register m is the input (Langevin pulls towards it) until a row writes it, ``m ← keep·y + keep_d·D`` (Heun's
predictor leaves half of the corrector there). A table starts from y = ½ + scale_in·(x − ½) + sigma_in·z and ends with
x = ½ + scale_out·(y − ½).

A sampler is a frozen dataclass; ``table(schedule, t_star)`` takes float64 times [b] and gives columns [b, steps], which
are differentiable in t_star. A row with a = 1 and b = c = 0 does nothing and costs no network call, so samples with a
smaller t_star simply finish earlier. Notation: t → s is one step down in time, h = t − s.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .core.errors import UserError
from .core.whole import numbers
from .schedules import Schedule


class Table(NamedTuple):
    """Coefficients of a reverse process; columns are float64 [b, steps], the start and end are float64 [b]."""

    sigma: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    pull: Tensor
    keep: Tensor
    keep_d: Tensor
    scale_in: Tensor
    sigma_in: Tensor
    scale_out: Tensor


class Sampler(Protocol):
    """How to go back from noise."""

    def n_steps(self, schedule: Schedule, t_max: float) -> int: ...

    def table(self, schedule: Schedule, t_star: Tensor, n: int) -> Table: ...


def _table(schedule: Schedule, t_star: Tensor, sigma, a, b, c, *, end: Tensor | None = None) -> Table:
    """A table without a register, which starts by diffusing to t_star and ends at time ``end`` (default: s = 1)."""
    none = torch.zeros_like(a)
    out = torch.ones_like(t_star) if end is None else torch.exp(schedule.log_scale(end))
    return Table(sigma, a, b, c, none, none, none, torch.ones_like(t_star), schedule.sigma(t_star), out)


def _count(t_max: float, end: float, dt: float) -> int:
    return max(1, math.ceil((t_max - end) / dt - 1e-6))


def _check_grid(steps: int | None, dt: float | None, whole: bool = False) -> None:
    if steps is not None and dt is not None:
        raise UserError("Give a sampler either steps (the same number for every sample) or dt, not both.")
    if steps is not None and steps < 1:
        raise UserError(f"A sampler needs at least 1 step, not {steps}.")
    if whole and steps is None:
        raise UserError("A grid of whole steps of the schedule needs a number of steps.")
    if dt is not None and not dt > 0:
        raise UserError(f"dt must be positive, not {dt}.")


def _check_positive(**given: float) -> None:
    """These are divided by, or stand for a noise that is."""
    for name, value in given.items():
        if not value > 0:
            raise UserError(f"The sampler's {name} must be positive, not {value}.")


def _nodes(t_star: Tensor, n: int, end: float, step: float | None, whole: float | None = None) -> tuple[Tensor, Tensor]:
    """Times (t, s) [b, n] of n steps from t_star down to ``end``.

    With a ``step`` every sample moves by it (a shorter last one meets ``end``) and then rests; without, n equal steps,
    whose times are rounded up to multiples of ``whole`` if that is given.
    """
    k = torch.arange(n + 1, dtype=t_star.dtype, device=t_star.device)
    top = t_star[:, None]
    grid = torch.clamp(top - k * step, min=end) if step else end + (top - end) * (1 - k / n)
    if whole:
        grid = torch.cat([(grid[:, :-1] / whole - 1e-9).ceil().clamp_min(1) * whole, grid[:, -1:]], dim=1)
    # Rounding must not leave a sliver of time as a step of its own.
    grid = torch.where((grid - end).abs() < 1e-9, torch.full_like(grid, end), grid)
    return grid[:, :-1], grid[:, 1:]


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom where bottom > 0, and 0 where it is 0; safe to differentiate."""
    return torch.where(bottom > 0, top / torch.where(bottom > 0, bottom, 1.0), 0.0)


def _root(value: Tensor) -> Tensor:
    """√max(value, 0), whose gradient at 0 is 0 rather than infinite."""
    positive = value > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, value, 1.0)), 0.0)


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling (Ho et al. 2020), with the small (posterior) or the large (β) variance.

    In this view the mean is a·y + (1 − a)·D with a = sigma_s²/sigma_t². Small: c² = sigma_s²(sigma_t² − sigma_s²)/
    sigma_t². Large: c² = β/(4ᾱ_s) = (sigma_t² − sigma_s²)·ᾱ_t/ᾱ_s, which means something for VE too. The default
    step is the schedule's own; a last step to sigma = 0 adds no noise. With ``whole`` the times of ``steps`` equal
    steps are rounded up to the schedule's own, as in SSNI's code: where two are the same, nothing happens.
    """

    variance: str = "small"
    steps: int | None = None
    dt: float | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        numbers(self)
        _check_grid(self.steps, self.dt, self.whole)
        if self.variance not in ("small", "large"):
            raise UserError(f"DDPM variance must be 'small' or 'large', not {self.variance!r}.")

    def n_steps(self, schedule: Schedule, t_max: float) -> int:
        return self.steps or _count(t_max, 0.0, self.dt or schedule.dt)

    def table(self, schedule: Schedule, t_star: Tensor, n: int) -> Table:
        step, whole = None if self.steps else self.dt or schedule.dt, schedule.dt if self.whole else None
        t, s = _nodes(t_star, n, 0.0, step, whole)
        sigma, lower = schedule.sigma(t), schedule.sigma(s)
        a = torch.where(t > s, _ratio(lower**2, sigma**2), 1.0)
        if self.variance == "small":
            noise = _ratio(lower * _root(sigma**2 - lower**2), sigma)
        else:
            shrink = torch.exp(schedule.log_scale(t) - schedule.log_scale(s))
            noise = torch.where(lower > 0, _root(sigma**2 - lower**2) * shrink, 0.0)
        return _table(schedule, t_star, sigma, a, 1 - a, noise)


@dataclass(frozen=True)
class DDIM:
    """Song, Meng and Ermon (ICLR 2021), eq. 12: eta = 0 is deterministic (Euler in sigma), 1 small-variance DDPM.

    ``whole`` is that of ``DDPM``.
    """

    eta: float = 0.0
    steps: int | None = None
    dt: float | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        numbers(self)
        _check_grid(self.steps, self.dt, self.whole)
        if not 0 <= self.eta <= 1:
            raise UserError(f"DDIM eta must lie in [0, 1], not {self.eta}.")

    def n_steps(self, schedule: Schedule, t_max: float) -> int:
        return self.steps or _count(t_max, 0.0, self.dt or schedule.dt)

    def table(self, schedule: Schedule, t_star: Tensor, n: int) -> Table:
        step, whole = None if self.steps else self.dt or schedule.dt, schedule.dt if self.whole else None
        t, s = _nodes(t_star, n, 0.0, step, whole)
        sigma, lower = schedule.sigma(t), schedule.sigma(s)
        c = self.eta * _ratio(lower * _root(sigma**2 - lower**2), sigma)
        a = torch.where(t > s, _ratio(_root(lower**2 - c**2), sigma), 1.0)
        return _table(schedule, t_star, sigma, a, 1 - a, c)


@dataclass(frozen=True)
class SDE:
    """Euler–Maruyama on the reverse SDE, DiffPure's main solver (Nie et al. 2022, eq. 6), from t* to ``end``.

    On [-1, 1]: x ← x + (½·rate·x + diffusion·score)·h + √(diffusion·h)·z. The last step is shorter and adds noise like
    the others, which is much where steps are few; with ``mean`` it adds none (Song et al., ICLR 2021; ADDT's VP-SDE).
    ``steps`` gives every sample that many equal steps instead of steps of ``dt``.
    """

    dt: float | None = None
    steps: int | None = None
    end: float = 1e-5
    mean: bool = False

    def __post_init__(self) -> None:
        numbers(self)
        _check_grid(self.steps, self.dt)
        _check_positive(end=self.end)

    def n_steps(self, schedule: Schedule, t_max: float) -> int:
        return self.steps or _count(t_max, self.end, self.dt or schedule.dt)

    def table(self, schedule: Schedule, t_star: Tensor, n: int) -> Table:
        t, s = _nodes(t_star, n, self.end, None if self.steps else self.dt or schedule.dt)
        return _euler(schedule, t_star, t, s, score_weight=1.0, noisy=s > self.end if self.mean else t > s)


@dataclass(frozen=True)
class ODE:
    """Euler on the probability-flow ODE in the process's own coordinates, as DiffPure's ODE variant does."""

    dt: float | None = None
    steps: int | None = None
    end: float = 1e-5

    def __post_init__(self) -> None:
        numbers(self)
        _check_grid(self.steps, self.dt)
        _check_positive(end=self.end)

    def n_steps(self, schedule: Schedule, t_max: float) -> int:
        return self.steps or _count(t_max, self.end, self.dt or schedule.dt)

    def table(self, schedule: Schedule, t_star: Tensor, n: int) -> Table:
        t, s = _nodes(t_star, n, self.end, None if self.steps else self.dt or schedule.dt)
        return _euler(schedule, t_star, t, s, score_weight=0.5, noisy=torch.zeros_like(t))


def _euler(schedule: Schedule, t_star: Tensor, t: Tensor, s: Tensor, *, score_weight: float, noisy: Tensor) -> Table:
    """One Euler step of x' = ½·rate·x + w·diffusion·score, written for y = x/s(t); score ∝ (D − y)/(4·sigma²·s(t))."""
    h = t - s
    sigma = schedule.sigma(t)
    growth = torch.exp(schedule.log_scale(t) - schedule.log_scale(s))  # x/s(t) → x/s(s)
    towards = h * score_weight * schedule.diffusion(t) * torch.exp(-2 * schedule.log_scale(t)) / (4 * sigma**2)
    a = growth * (1 + 0.5 * h * schedule.rate(t) - towards)
    c = 0.5 * _root(h * schedule.diffusion(t)) * torch.exp(-schedule.log_scale(s)) * noisy
    return _table(schedule, t_star, sigma, a, growth * towards, c, end=s[:, -1])


@dataclass(frozen=True)
class Heun:
    """Heun's second-order method on the probability-flow ODE in sigma (Karras et al. 2022, algorithm 1 with no churn).

    ``steps`` intervals between sigma(t*) and ``sigma_min``, spaced by the power ``rho``, then an Euler step to 0:
    2·steps − 1 network calls. The published 0.002 is on [-1, 1] images, which is 0.001 here.
    """

    steps: int = 10
    sigma_min: float = 0.001
    rho: float = 7.0

    def __post_init__(self) -> None:
        numbers(self)
        _check_grid(self.steps, None)
        _check_positive(sigma_min=self.sigma_min, rho=self.rho)

    def n_steps(self, schedule: Schedule, t_max: float) -> int:
        return 2 * self.steps - 1

    def table(self, schedule: Schedule, t_star: Tensor, n: int) -> Table:
        top, low = schedule.sigma(t_star)[:, None] ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        k = torch.arange(self.steps, dtype=t_star.dtype, device=t_star.device)
        levels = (top + (low - top) * k / max(1, self.steps - 1)) ** self.rho
        sigma, lower = levels, torch.cat([levels[:, 1:], torch.zeros_like(levels[:, :1])], dim=1)
        slope = (lower - sigma) / sigma  # Euler: y + slope·(y − D)
        inner = slope[:, :-1]
        corrector = 0.5 * (lower - sigma)[:, :-1] / lower[:, :-1]
        zero, one = torch.zeros_like(inner), torch.ones_like(inner)

        def rows(predictor: Tensor, corrected: Tensor, last: Tensor) -> Tensor:
            pairs = torch.stack([predictor, corrected], dim=2).flatten(1)
            return torch.cat([pairs, last], dim=1)

        end = torch.zeros_like(top)
        return Table(
            sigma=rows(sigma[:, :-1], lower[:, :-1], sigma[:, -1:]),
            a=rows(1 + inner, corrector, end),
            b=rows(-inner, -corrector, end + 1),
            c=rows(zero, zero, end),
            pull=rows(zero, one, end),
            keep=rows(1 + inner / 2, zero, end),
            keep_d=rows(-inner / 2, zero, end),
            scale_in=torch.ones_like(t_star),
            sigma_in=schedule.sigma(t_star),
            scale_out=torch.ones_like(t_star),
        )


@dataclass(frozen=True)
class OneShot:
    """The denoiser's estimate at t*, in one call (the purifier of denoised smoothing, Carlini et al., ICLR 2023)."""

    def n_steps(self, schedule: Schedule, t_max: float) -> int:
        return 1

    def table(self, schedule: Schedule, t_star: Tensor, n: int) -> Table:
        zero = torch.zeros_like(t_star)[:, None]
        return _table(schedule, t_star, schedule.sigma(t_star)[:, None], zero, zero + 1, zero)


@dataclass(frozen=True)
class Langevin:
    """DiffPure's LD-SDE: Langevin dynamics with the score frozen at t = ``level`` and a pull towards the input.

    On [-1, 1]: x ← x + ½·lam·h·(score(x, level) − (x − x_in)/spread) + eta·√(lam·h)·z, for t*/dt steps, without
    noising the input first. Defaults are DiffPure's: lam = 0.01, spread (their σ²) = 1e-3, eta = 5, dt = 0.01.
    """

    lam: float = 0.01
    spread: float = 1e-3
    eta: float = 5.0
    level: float = 0.01
    dt: float = 0.01

    def __post_init__(self) -> None:
        numbers(self)
        _check_grid(None, self.dt)
        _check_positive(level=self.level, spread=self.spread)

    def n_steps(self, schedule: Schedule, t_max: float) -> int:
        return _count(t_max, 0.0, self.dt)

    def table(self, schedule: Schedule, t_star: Tensor, n: int) -> Table:
        t, s = _nodes(t_star, n, 0.0, self.dt)
        h = t - s
        level = torch.full_like(t, self.level)
        sigma, scale = schedule.sigma(level), torch.exp(schedule.log_scale(level))
        towards = 0.5 * self.lam * h / (4 * (scale * sigma) ** 2)
        pull = 0.5 * self.lam * h / self.spread
        none = torch.zeros_like(t)
        c = 0.5 * self.eta * _root(self.lam * h) / scale
        start = 1 / scale[:, 0]
        return Table(
            sigma, 1 - towards - pull, towards, c, pull / scale, none, none, start, torch.zeros_like(t_star), 1 / start
        )


SAMPLERS = {
    "sde": SDE,
    "sde-mean": partial(SDE, mean=True),
    "ode": ODE,
    "ddpm": DDPM,
    "ddim": DDIM,
    "heun": Heun,
    "one-shot": OneShot,
    "langevin": Langevin,
}
