"""The training loop, as a generator: the caller decides what to print, to save and when to stop.

Several processes work together through ``Workers``, which Hugging Face's Accelerator is one of. Gradients are added up
in one reduction of our own and not by DistributedDataParallel, whose hooks expect one pass through the network a step:
adversarial objectives make a dozen.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.generators import seeded
from ..core.noise import Key, Rng
from . import augment
from .batches import Source
from .objectives import Objective
from .recipe import Recipe


class Progress(NamedTuple):
    """One step of training: its number (from 1), its mean loss, and all that a resumed run needs."""

    step: int
    loss: float
    state: Callable[[], dict[str, Any]]


class Workers(Protocol):
    """The processes that train together, seen from one of them."""

    device: torch.device
    process_index: int
    num_processes: int

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor: ...


@dataclass(frozen=True)
class Alone:
    """One process."""

    device: torch.device = torch.device("cpu")
    process_index: int = 0
    num_processes: int = 1

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


@torch.inference_mode(False)  # around every step, and none of the caller's work between them
def train(
    model: nn.Module,
    objective: Objective,
    source: Source,
    recipe: Recipe,
    resume: dict[str, Any] | None = None,
    workers: Workers = Alone(),
) -> Iterator[Progress]:
    """Trains ``model`` in place on the workers' device; yields after every step.

    All randomness is addressed by step and position in the batch, so a run resumed from ``Progress.state()`` continues
    as if it had not stopped, and another number of processes sees the same images and noise (dropout's apart). When the
    generator is exhausted the model holds the averaged weights. Parameters that are frozen stay so, unless all are.
    Batch normalisation uses the statistics of a process's own part.
    """
    if recipe.batch < workers.num_processes:
        raise UserError(f"A batch of {recipe.batch} cannot be shared by {workers.num_processes} processes; enlarge it.")
    if any(p.is_inference() for p in model.parameters()):
        raise UserError("A network made under torch.inference_mode cannot be trained; train a copy.deepcopy of it.")
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    model.to(workers.device, memory_format=layout)
    if not any(p.requires_grad for p in model.parameters()):  # loaded weights are frozen
        model.requires_grad_(True)
    optimiser = _optimiser(model, recipe)
    average = {name: t.detach().clone() for name, t in _floats(model)}
    start = 0
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimiser.load_state_dict(deepcopy(resume["optimiser"]))
        average = {name: t.to(workers.device, copy=True) for name, t in resume["average"].items()}
        start = resume["step"]
        del resume

    def state() -> dict[str, Any]:
        now = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": average, "step": step + 1}
        return deepcopy(now)

    model.train()
    called = torch.compile(model) if recipe.compile else model
    key = Key(recipe.seed).fold("train")
    kept = list(average.values())
    for step in range(start, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        optimiser.zero_grad(set_to_none=False)
        loss = _losses(called, objective, source, recipe, key, step, workers)
        loss = _reduce(model, loss, workers)
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(kept, [t for _, t in _floats(model)], 1 - recipe.decay(step))
        yield Progress(step + 1, loss.item(), state)
    if recipe.ema or recipe.ema_half_life:
        with torch.no_grad():
            for name, t in _floats(model):
                t.copy_(average[name])
    model.eval().requires_grad_(False)


def _floats(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Everything that is averaged: parameters, and the running statistics of normalisations."""
    return [(name, t) for name, t in model.state_dict(keep_vars=True).items() if t.is_floating_point()]


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Biases and normalisations are not decayed."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), fused=True)


def _losses(called, objective, source: Source, recipe: Recipe, key: Key, step: int, workers: Workers) -> Tensor:
    """Gradients of this process's part of the batch's mean loss, which is returned (its share of it)."""
    total = torch.zeros((), device=workers.device)
    for part in _parts(recipe.batch, workers.process_index, workers.num_processes, recipe.accumulate):
        x, y = source.batch(key, recipe.batch, step, part)
        rng = key.fold("step", step).rng(torch.arange(part.start, part.stop))
        x = _augment(x, rng, recipe).to(workers.device)
        x = x.contiguous(memory_format=torch.channels_last) if recipe.channels_last else x
        bf16 = torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
        dropout = key.fold("dropout", step, part.start).philox("dropout")[0] >> 1  # the one noise of torch's own
        with bf16, seeded(int(dropout), x.device):
            loss = objective(called, x, y.to(x.device), rng.fold("objective")).sum() / recipe.batch
        loss.backward()
        total += loss.detach()
    return total


def _parts(batch: int, process: int, processes: int, accumulate: int) -> list[slice]:
    """The rows of a batch that a process computes, in as many pieces as it is accumulated from."""
    cuts = [batch * i // (processes * accumulate) for i in range(processes * accumulate + 1)]
    mine = range(process * accumulate, (process + 1) * accumulate)
    return [slice(cuts[i], cuts[i + 1]) for i in mine if cuts[i] < cuts[i + 1]]


def _augment(x: Tensor, rng: Rng, recipe: Recipe) -> Tensor:
    if recipe.shift:
        x = augment.shift(x, rng.fold("shift"), recipe.shift)
    if recipe.crop:
        x = augment.crop(x, rng.fold("crop"), recipe.crop)
    if recipe.flip:
        x = augment.flip(x, rng.fold("flip"))
    if recipe.cutout:
        x = augment.cutout(x, rng.fold("cutout"), recipe.cutout)
    return x


@torch.no_grad()
def _reduce(model: nn.Module, loss: Tensor, workers: Workers) -> Tensor:
    """Adds gradients and loss over processes, and averages running statistics, in one message."""
    if workers.num_processes == 1:
        return loss
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    torch._foreach_div_(buffers, workers.num_processes) if buffers else None
    together = [*gradients, *buffers, loss]
    flat = torch.cat([t.reshape(-1) for t in together])
    flat = workers.reduce(flat, "sum")
    for t, summed in zip(together, flat.split([t.numel() for t in together]), strict=True):
        t.copy_(summed.view_as(t))
    return loss
