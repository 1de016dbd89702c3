"""How wrong are a continuous adjoint and BPDA? Measured against the exact gradient, on an exact score.

    python -m benchmarks.which_gradient

Data are Gaussian mixtures in 64 dimensions whose score is known in closed form; the defence is DiffPure at its
reference setting (VP, t* = 0.1, dt = 1e-3). The smaller the variance inside a mode, the stiffer the reverse process
is near t = 0.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import store
from lustral.core.adjoint import Checkpointed, Identity
from lustral.core.kernel import purify
from lustral.core.noise import Key, Rng
from lustral.denoisers.base import column, score
from lustral.denoisers.ideal import GaussianMixture
from lustral.purifiers.presets import diffpure
from lustral.schedules import VP

T_STAR, DT, END = 0.1, 1e-3, 1e-5


class Comparison(NamedTuple):
    """Of a gradient with the exact one, over images: cosine (mean, worst), ratio of lengths, share of equal signs."""

    cosine: float
    worst: float
    length: float
    signs: float


def mixture(variance: float, modes: int = 200, spread: float = 0.05) -> GaussianMixture:
    """Modes normal about mid-grey, near enough that the diffused image leaves several of them possible."""
    z = Key(0).fold("means").rng(modes).normal(torch.empty(modes, 1, 8, 8, dtype=torch.float64))
    means = (0.5 + spread * z).clamp(0, 1)
    return GaussianMixture(means, torch.full((modes,), variance, dtype=torch.float64))


def continuous_adjoint(data: GaussianMixture, x: Tensor, rng: Rng, seed: Tensor, noise: bool) -> Tensor:
    """Optimise-then-discretise, as DiffPure does: state and adjoint are integrated backwards by explicit Euler.

    The state is simulated again from its end instead of stored, and every drift is evaluated at the later end of its
    step, first at t = 1e-5. The forward pass's own grid and noise are used, the kindest case. On [-1, 1] throughout.
    """
    vp = VP()
    times = [max(T_STAR - k * DT, END) for k in range(round(T_STAR / DT) + 1)]

    def drift(y: Tensor, t: float) -> Tensor:
        time = torch.full((len(y),), t, dtype=torch.float64)
        scale = column(torch.exp(vp.log_scale(time)), y)
        gradient = score(data, 0.5 + y / (2 * scale), vp.sigma(time)) / (2 * scale)
        return 0.5 * vp.rate(time)[0] * y + (1.0 if noise else 0.5) * vp.rate(time)[0] * gradient

    with torch.no_grad():
        solver = diffpure(data, T_STAR, "sde" if noise else "ode")
        y = 2 * purify(solver, x, rng) - 1
    adjoint = seed / 2
    for k in reversed(range(len(times) - 1)):
        h, t = times[k] - times[k + 1], times[k + 1]
        leaf = y.detach().requires_grad_()
        f = drift(leaf, t)
        (pulled,) = torch.autograd.grad(f, leaf, adjoint)
        kick = (vp.rate(torch.tensor(t)) * h) ** 0.5 * rng.fold("step", k).normal(y) if noise else 0.0
        y, adjoint = (y - f * h - kick).detach(), adjoint + h * pulled
    return 2 * torch.exp(vp.log_scale(torch.tensor(T_STAR, dtype=torch.float64))) * adjoint


def compare(found: Tensor, exact: Tensor) -> Comparison:
    """One gradient against another, image by image."""
    a, b = found.flatten(1), exact.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(a, b)
    ratio = (a.norm(dim=1) / b.norm(dim=1)).median()
    signs = (a.sign() == b.sign()).double().mean()
    return Comparison(cosine.mean().item(), cosine.min().item(), ratio.item(), signs.item())


def measure(variance: float, solver: str, images: int) -> Iterator[tuple[str, Comparison]]:
    """The continuous adjoint and BPDA against the exact gradient of a random linear functional."""
    data, rng = mixture(variance), Key(1).rng(images)
    x = data.means[rng.ids % len(data.means)]
    x = (x + variance**0.5 * rng.fold("x").normal(x)).clamp(0, 1)
    seed = rng.fold("functional").normal(x)

    def gradient(adjoint) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(purify(diffpure(data, T_STAR, solver), leaf, rng, adjoint=adjoint), leaf, seed)[0]

    exact = gradient(Checkpointed())
    yield "continuous adjoint", compare(continuous_adjoint(data, x, rng, seed, solver == "sde"), exact)
    yield "BPDA", compare(gradient(Identity()), exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    images = parser.parse_args().images
    head = ["solver", "variance in a mode", "gradient", "cosine, mean", f"cosine, worst of {images}", "length ratio"]
    lines = []
    for solver in ("sde", "ode"):
        for variance in (1e-2, 1e-3, 3e-4, 1e-4):
            for name, c in measure(variance, solver, images):
                numbers = f"{c.cosine:.3f}", f"{c.worst:.3f}", f"{c.length:.3g}", f"{c.signs:.0%}"
                lines.append([solver, f"{variance:g}", name, *numbers])
                print(*lines[-1], sep="  ", file=sys.stderr, flush=True)
    print(found := store.Table([*head, "signs agree"], lines))
    store.keep("which-gradient", {"adjoints": [found]})


if __name__ == "__main__":
    main()
