"""The training loop, as a generator: the caller decides what to print, to save and when to stop."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.noise import Key
from .objectives import Objective, shift
from .recipe import Recipe


class Progress(NamedTuple):
    """One step of training: its number (from 1), its mean loss, and all that a resumed run needs."""

    step: int
    loss: float
    state: Callable[[], dict[str, Any]]


def _rate(recipe: Recipe, step: int) -> float:
    warm = max(1, recipe.steps // 20)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))


def _rows(key: Key, n: int, batch: int, step: int) -> Tensor:
    """The images of one step: epochs are shuffles addressed by their number, so any step can be found again."""
    first = step * batch
    chosen = []
    for epoch in range(first // n, (first + batch - 1) // n + 1):
        order = key.fold("order", epoch).rng(1).uniform(torch.empty(1, n))[0].argsort(stable=True)
        chosen.append(order[max(0, first - epoch * n) : first + batch - epoch * n])
    return torch.cat(chosen)


def train(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, recipe: Recipe, resume: dict[str, Any] | None = None
) -> Iterator[Progress]:
    """Trains ``model`` in place on images x [n, c, h, w] and labels y [n]; yields after every step.

    All randomness is addressed, so a run resumed from ``Progress.state()`` continues as if it had not stopped. When the
    generator is exhausted the model holds the averaged weights.
    """
    key = Key(recipe.seed).fold("train")
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = 0
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimiser.load_state_dict(resume["optimiser"])
        average, start = resume["average"], resume["step"]

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": average, "step": step + 1}

    model.train()
    for step in range(start, recipe.steps):
        rows = _rows(key, len(x), recipe.batch, step)
        rng = key.fold("step", step).rng(recipe.batch)
        images = shift(x[rows], rng.fold("shift"), recipe.shift) if recipe.shift else x[rows]
        for group in optimiser.param_groups:
            group["lr"] = _rate(recipe, step)
        loss = objective(model, images, y[rows], rng.fold("objective")).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(model.parameters()), 1 - decay)
        yield Progress(step + 1, loss.item(), state)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(average[name])
    model.eval().requires_grad_(False)
