"""Diffusion purification (DiffPure, Nie et al., ICML 2022): noise the image up to t*, then run a reverse process.

One kernel runs any sampler's table (``samplers.py``), with one network call per row and sample, and none for a sample
whose row does nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.noise import Rng
from ..core.whole import numbers
from ..denoisers.base import Denoiser, column, denoise, reach
from ..samplers import Sampler, Table
from ..schedules import Schedule

TStar = Callable[[Tensor], Tensor]


class Guidance(Protocol):
    """What a reverse process is drawn to besides clean images: ∇ of log p(input | y) with respect to y.

    ``y`` is on the variance-exploding view at noise ``sigma`` [b], ``x`` the image that the purification began with.
    """

    def __call__(self, y: Tensor, sigma: Tensor, x: Tensor, rng: Rng) -> Tensor: ...


class TableState(NamedTuple):
    """y in the variance-exploding view, the register m, the samples' own table (None if shared), what guides."""

    y: Tensor
    register: Tensor | None
    table: Table | None
    guide: Tensor | None = None


class Row(NamedTuple):
    """One step's coefficients: floats for all samples alike, or tensors [b, 1, 1, 1]."""

    a: float | Tensor
    b: float | Tensor
    c: float | Tensor
    pull: float | Tensor
    keep: float | Tensor
    keep_d: float | Tensor
    offset: float | Tensor


class Ends(NamedTuple):
    """How a table begins and ends: scales and first noise like a row's values, and whether it draws and remembers."""

    scale_in: float | Tensor
    sigma_in: float | Tensor
    scale_out: float | Tensor
    noisy: bool
    pulled: bool


def _noisy(table: Table) -> tuple[bool, bool]:
    return bool((table.sigma_in > 0).any()), bool((table.pull != 0).any())


@dataclass(frozen=True)
class Diffusion:
    """Diffuses to ``t_star`` on ``schedule``, then reverses with ``sampler``.

    ``t_star`` is a time of the schedule, or a function from images to times [b] up to ``t_max`` (a noise level for each
    sample, as in SSNI), through which gradients flow. With ``clamp`` the output is cut to [0, 1]; DiffPure does not.
    ``guidance`` is added to the score: D + sigma²·∇ takes D's place, for every sampler alike. With ``cut`` a step goes
    to the estimate cut to [0, 1], its direction being that of the uncut one (diffusers' DDIM; ``Clipped`` cuts both);
    that is meant for DDPM and DDIM, whose steps go there.
    """

    denoiser: Denoiser = field(metadata={"role": "weights"})
    schedule: Schedule
    sampler: Sampler
    t_star: float | TStar = 0.1
    t_max: float | None = None
    clamp: bool = False
    guidance: Guidance | None = None
    cut: bool = False

    def __post_init__(self) -> None:
        numbers(self)
        top = self.t_max if callable(self.t_star) else self.t_star
        if top is None:
            raise UserError("With a t_star that depends on the image, t_max must say how large it can become.")
        if not 0 < top <= self.schedule.t_max:
            hint = f"; did you mean t_star={top / 1000:g}?" if 1 < top <= 1000 and self.schedule.t_max == 1 else "."
            raise UserError(f"t_star must lie in (0, {self.schedule.t_max:g}], not {top:g}{hint}")
        sigma = float(self.schedule.sigma(torch.tensor(float(top), dtype=torch.float64)))
        if getattr(self.sampler, "end", 0.0) >= top or getattr(self.sampler, "sigma_min", 0.0) >= sigma:
            raise UserError(f"The sampler ends above t_star={top:g} (sigma={sigma:.3g}), where it should begin.")
        level = getattr(self.sampler, "level", None)  # where it asks the network, t_star being how long it goes on
        name, top = ("t_star", top) if level is None else ("level", level)
        sigma = float(self.schedule.sigma(torch.tensor(float(top), dtype=torch.float64)))
        if sigma > reach(self.denoiser)[1] * (1 + 1e-6):
            raise UserError(
                f"{name}={top:g} means noise sigma={sigma:.3g}, beyond the {reach(self.denoiser)[1]:.3g} that this "
                f"denoiser knows; choose a smaller {name}."
            )

    @cached_property
    def n_steps(self) -> int:
        return self.sampler.n_steps(self.schedule, self.t_max if callable(self.t_star) else self.t_star)

    @cached_property
    def _shared(self) -> Table | None:
        """The table of a constant t*, computed once."""
        if callable(self.t_star):
            return None
        return self.sampler.table(self.schedule, torch.tensor([self.t_star], dtype=torch.float64), self.n_steps)

    @cached_property
    def _rows(self) -> tuple[list[float], list[Row]]:
        table = self._shared
        columns = (c[0].tolist() for c in _columns(table))
        return table.sigma[0].tolist(), [Row(*values) for values in zip(*columns, strict=True)]

    @cached_property
    def _edges(self) -> Ends:
        """The ends of the shared table as plain numbers, so that no step of a constant t* looks into a tensor."""
        table = self._shared
        return Ends(*(float(part) for part in (table.scale_in, table.sigma_in, table.scale_out)), *_noisy(table))

    def _ends(self, table: Table | None, like: Tensor) -> Ends:
        """The ends of a table of the samples' own, or of the shared one (None)."""
        if table is None:
            return self._edges
        return Ends(*(column(part, like) for part in (table.scale_in, table.sigma_in, table.scale_out)), *_noisy(table))

    def init(self, x: Tensor, rng: Rng) -> TableState:
        return self.begin(x, x, x, rng)

    def begin(self, x: Tensor, seen: Tensor, guide: Tensor, rng: Rng) -> TableState:
        """Like ``init``; a ``t_star`` that is a function is asked about ``seen``, guidance is given ``guide``."""
        table = None
        if self._shared is None:
            t_star = self.t_star(seen).double()
            # A float32 t_max may lie above the float64 one by its rounding.
            if t_star.shape != (len(x),) or not bool(((t_star > 0) & (t_star <= self.t_max * (1 + 1e-6))).all()):
                raise UserError(f"t_star must give one time in (0, t_max={self.t_max:g}] per image; clamp it there.")
            table = self.sampler.table(self.schedule, t_star, self.n_steps)
        ends = self._ends(table, x)
        y = 0.5 + ends.scale_in * (x - 0.5)
        if ends.noisy:
            y = y + ends.sigma_in * rng.normal(x)
        return TableState(y, x if ends.pulled else None, table, None if self.guidance is None else guide)

    def step(self, i: int, state: TableState, rng: Rng) -> TableState:
        if state.table is None:
            sigmas, rows = self._rows
            if rows[i].b == 0:
                return state
            sigma = torch.full((len(state.y),), sigmas[i], dtype=state.y.dtype, device=state.y.device)
            return self._advance(rows[i], sigma, state, rng)
        table = state.table
        sigma = table.sigma[:, i]
        row = Row(*(column(c[:, i], state.y) for c in _columns(table)))
        moving = (row.b != 0).flatten()
        if bool(moving.all()):
            return self._advance(row, sigma, state, rng)
        if not bool(moving.any()):
            return state
        rest = moving.nonzero()[:, 0]
        register, guide = (None if t is None else t[rest] for t in (state.register, state.guide))
        part = TableState(state.y[rest], register, None, guide)
        part = self._advance(Row(*(value[rest] for value in row)), sigma[rest], part, rng[rest])
        y = state.y.index_copy(0, rest, part.y)
        register = None if state.register is None else state.register.index_copy(0, rest, part.register)
        return TableState(y, register, table, state.guide)

    def _advance(self, row: Row, sigma: Tensor, state: TableState, rng: Rng) -> TableState:
        y, register = state.y, state.register
        d = denoise(self.denoiser, y, sigma)
        if self.guidance is not None:
            d = d + column(sigma, y) ** 2 * self.guidance(y, sigma, state.guide, rng.fold("guide"))
        out = row.a * y + row.b * d
        if self.cut:
            out = out + d.clamp(0, 1) - d
        if _any(row.c):
            out = out + row.c * rng.normal(y)
        if register is not None:
            out = out + row.pull * (register - 0.5)
            if _any(row.keep):
                register = row.keep * y + row.keep_d * d
        return TableState(out + row.offset if _any(row.offset) else out, register, state.table, state.guide)

    def effort(self, state: TableState) -> Tensor | None:
        """Network calls that each sample [b] will take; None where all take the same."""
        return None if state.table is None else (state.table.b != 0).sum(dim=1)

    def readout(self, state: TableState) -> Tensor:
        x = 0.5 + self._ends(state.table, state.y).scale_out * (state.y - 0.5)
        return x.clamp(0, 1) if self.clamp else x


def _columns(table: Table) -> tuple[Tensor, ...]:
    """What makes a ``Row``; the last moves the centre of the images to ½."""
    offset = 0.5 * (1 - table.a - table.b)
    return table.a, table.b, table.c, table.pull, table.keep, table.keep_d, offset


def _any(value: float | Tensor) -> bool:
    return bool((value != 0).any()) if isinstance(value, Tensor) else abs(value) > 1e-12
