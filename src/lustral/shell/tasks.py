"""What ``lustral train`` trains: from data to safetensors with a card, surviving interruption."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.errors import UserError, unknown
from ..core.noise import Key
from ..evaluate.protocol import Data
from ..training.loop import train
from ..training.objectives import CrossEntropy, DenoisingEDM, Objective
from ..training.recipe import Recipe
from . import data as datasets
from . import weights
from .terminal import command, console, progress, versions

SAVE_EVERY = 60.0
SIGMAS = (0.05, 0.1, 0.2, 0.3)
WIDTHS = {"classifier": 32, "denoiser": 16}


def _classifier(train_set: Data, width: int) -> tuple[dict, Objective]:
    classes = int(train_set.y.max()) + 1
    return {"type": "SmallCNN", "channels": train_set.x.shape[1], "width": width, "classes": classes}, CrossEntropy()


def _denoiser(train_set: Data, width: int) -> tuple[dict, Objective]:
    spread = round(float(train_set.x.std()), 4)
    net = {"type": "UNet", "channels": train_set.x.shape[1], "width": width, "mult": [1, 2], "blocks": 1, "patch": 2}
    objective = DenoisingEDM(sigma_min=0.01, sigma_max=1.0, sigma_data=spread)
    limits = {"sigma_min": objective.sigma_min, "sigma_max": objective.sigma_max}
    return {"type": "EDM", "net": net, "sigma_data": spread, **limits}, objective


@torch.no_grad()
def _accuracy(model: nn.Module, test: Data) -> dict[str, float]:
    return {"test_accuracy": round((model(test.x).argmax(dim=1) == test.y).double().mean().item(), 4)}


@torch.no_grad()
def _rmse(model: nn.Module, test: Data) -> dict[str, float]:
    """Root mean square error per pixel on test images, for a few noise levels."""
    out = {}
    for sigma in SIGMAS:
        z = Key(0).fold("rmse", str(sigma)).rng(test.ids).normal(test.x)
        clean: Tensor = model(test.x + sigma * z, torch.full((len(z),), sigma))
        out[f"test_rmse_at_{sigma}"] = round((clean - test.x).square().mean().sqrt().item(), 4)
    return out


TASKS: dict[str, tuple[Callable, Callable]] = {"classifier": (_classifier, _accuracy), "denoiser": (_denoiser, _rmse)}


def run(task: str, out: Path, data: str, width: int | None, recipe: Recipe) -> weights.Card:
    """Trains ``task`` on a data set and writes ``out`` with its card. An interrupted run goes on where it stopped."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if out.suffix != ".safetensors":
        raise UserError(
            f"Weights are .safetensors files; name the output so, for example {out.with_suffix('.safetensors')}."
        )
    width = WIDTHS[task] if width is None else width
    if width < 2 or width % 2:
        raise UserError(f"width must be an even number from 2, not {width}.")
    describe, measure = TASKS[task]
    train_set, test = datasets.load(data, "train"), datasets.load(data, "test")
    architecture, objective = describe(train_set, width)
    torch.manual_seed(recipe.seed)
    model = weights.build(architecture)
    identity = {"task": task, "data": data, "architecture": architecture, "recipe": asdict(recipe)}
    _fit(model, objective, train_set, recipe, out.with_suffix(".checkpoint"), identity)
    card = weights.Card(
        name=out.stem,
        kind=task,
        architecture=architecture,
        data=data,
        image=list(train_set.x.shape[1:]),
        command=command(),
        measured=measure(model, test),
        recipe=asdict(recipe) | {"objective": type(objective).__name__, **asdict(objective)},
        versions=versions(),
    )
    card = weights.save(out, model, card)
    out.with_suffix(".checkpoint").unlink(missing_ok=True)
    return card


def _fit(model: nn.Module, objective: Objective, data: Data, recipe: Recipe, checkpoint: Path, identity: dict) -> None:
    resume = weights.load_checkpoint(checkpoint) if checkpoint.exists() else None
    if resume is not None and resume["identity"] != identity:
        raise UserError(
            f"{checkpoint} belongs to another training run; finish that one, delete it, or choose another output."
        )
    saved = time.monotonic()
    with progress() as bar:
        task = bar.add_task("training", total=recipe.steps, completed=resume["step"] if resume else 0)
        for now in train(model, objective, data.x, data.y, recipe, resume):
            if now.step % 20 == 0 or now.step == recipe.steps:
                bar.update(task, completed=now.step, description=f"loss {now.loss:.4f}")
            if time.monotonic() - saved > SAVE_EVERY:
                weights.save_checkpoint(checkpoint, now.state() | {"identity": identity})
                saved = time.monotonic()
    if resume:
        console.print(f"Resumed at step {resume['step']}.")
