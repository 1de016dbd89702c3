"""StAdv (Xiao et al. 2018): images bent by a small flow field, which no norm of pixel changes describes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError
from ..core.noise import Rng
from ..core.whole import numbers
from .gradients import Estimator, Selection, Victim
from .losses import Loss, margin
from .search import Best, Outcome, begin, searching, usable


@dataclass(frozen=True)
class Flow:
    """Every pixel may be taken from at most ``eps`` (whole) pixels away, along each axis, by bilinear interpolation.

    What a judge can verify from images alone: every pixel lies between the least and the largest clean pixel within
    ``eps``. ``distance`` is the smallest whole number of pixels for which that holds.
    """

    eps: int = 1

    def __post_init__(self) -> None:
        numbers(self)
        if self.eps < 1:
            raise UserError(f"A flow is bounded by a whole number of pixels from 1 on, not {self.eps}.")

    def project(self, x: Tensor, x0: Tensor) -> Tensor:
        low, high = _range(x0, self.eps)
        return torch.minimum(torch.maximum(x, low), high)

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        found = x.new_full((len(x),), float(max(*x.shape[2:], self.eps + 1)))
        for radius in reversed(range(self.eps + 1)):
            low, high = _range(x0, radius)
            inside = ((x >= low - 1e-6) & (x <= high + 1e-6)).flatten(1).all(dim=1)
            found = torch.where(inside, float(radius), found)
        return found

    def bend(self, x0: Tensor, flow: Tensor) -> Tensor:
        """Images x0 [b, c, h, w] seen through a flow [b, h, w, 2] in pixels (x first); edges repeat."""
        height, width = x0.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        at = torch.stack([columns, rows], dim=-1).to(x0) + flow
        scale = at.new_tensor([max(width - 1, 1), max(height - 1, 1)])
        return F.grid_sample(x0, 2 * at / scale - 1, padding_mode="border", align_corners=True)


def _range(x0: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """The least and largest pixel in a square of ``radius`` around every pixel."""
    high = F.max_pool2d(x0, 2 * radius + 1, stride=1, padding=radius)
    return -F.max_pool2d(-x0, 2 * radius + 1, stride=1, padding=radius), high


@dataclass(frozen=True)
class StAdv:
    """Signed steps of momentum on the flow, which is clipped to the threat; the best image is the candidate.

    The original adds a penalty on rough flows with L-BFGS; the bound takes its place here, so that candidates are
    comparable and verifiable.
    """

    threat: Flow
    gradient: Estimator
    loss: Loss = margin
    steps: int = 30
    patience: int = 3
    select: Selection = Selection()

    def __post_init__(self) -> None:
        numbers(self)
        if self.steps < 1 or self.patience < 0:
            raise UserError("StAdv needs steps ≥ 1 and patience ≥ 0.")

    @property
    def looks(self) -> int:
        return self.steps

    @searching
    def run(self, victim: Victim, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        rng = begin(x0, y, rng)
        best = Best(x0, self.patience)
        flow = self.threat.eps * (2 * rng.fold("start").uniform(x0.new_empty(len(x0), *x0.shape[2:], 2)) - 1) / 4
        velocity, size = torch.zeros_like(flow), 2.5 * self.threat.eps / self.steps
        for i in range(self.steps + 1):
            rows = best.open()
            if not len(rows):
                break
            with torch.enable_grad():
                leaf = flow[rows].requires_grad_()
                bent = self.threat.bend(x0[rows], leaf)
            at = self.threat.project(bent.detach(), x0[rows])  # interpolation is off by a rounding error
            best.choose(rows, at, self.select(victim, at, y[rows], self.loss, rng.fold("select")[rows]))
            if i == self.steps:
                break
            best.note(rows, look := self.gradient(victim, at, y[rows], self.loss, rng.fold("look", i)[rows]))
            (grad,) = torch.autograd.grad(bent, leaf, usable(look.grad))
            mean = grad.abs().flatten(1).mean(dim=1).clamp_min(1e-20).view(-1, 1, 1, 1)
            velocity[rows] = 0.75 * velocity[rows] + grad / mean
            flow[rows] = (flow[rows] + size * velocity[rows].sign()).clamp(-self.threat.eps, self.threat.eps)
        return best.outcome()
