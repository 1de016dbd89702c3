"""``lustral train``: from images to safetensors with a card, a log and pictures, surviving interruption."""

import copy
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..core.errors import UserError
from ..core.spec import spec
from ..evaluate.protocol import Data
from ..training.batches import Images, Source
from ..training.loop import Progress, train
from ..training.recipe import Recipe
from . import curves, tasks, weights
from . import data as datasets
from .files import write_text
from .tasks import Asked, Task
from .terminal import Quiet, command, console, progress, versions

SAVE_EVERY = 60.0
EVERY = 20
"""Steps that a line of the log, and of the display, is the mean of."""


@dataclass(frozen=True)
class Choice:
    """Which images to train on; ``extra`` are further labelled ones."""

    data: str
    split: str = "train"
    extra: str | None = None


@dataclass
class History:
    """The log: rows of (step, mean loss, images per second), measurements, and the steps since the last row."""

    batch: int
    rows: list[list[float]] = field(default_factory=list)
    checks: list[dict[str, float]] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def note(self, now: Progress, last: bool) -> bool:
        """Takes a step in; whether that completed a row."""
        self._losses.append(now.loss)
        if now.step % EVERY and not last:
            return False
        seconds = max(1e-9, time.monotonic() - self._since)
        count = len(self._losses)
        self.rows.append([now.step, sum(self._losses) / count, self.batch * count / seconds])
        self._losses, self._since = [], time.monotonic()
        return True


def run(asked: Asked, out: Path, images: Choice, recipe: Recipe, check_every: int = 0) -> weights.Card | None:
    """Trains what was asked for and writes ``out``; returns its card, or None in a process that is not the first.

    An interrupted run goes on where it stopped, also with another number of processes. If ``check_every`` is not 0,
    the averaged network is measured every so many steps: on validation images where those were kept out, else on test
    images.
    """
    if out.suffix != ".safetensors":
        better = out.with_suffix(".safetensors")
        raise UserError(f"Weights are .safetensors files; name the output so, for example {better}.")
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    train_set, test = (datasets.load_bytes(images.data, split) for split in (images.split, "test"))
    extra = None if images.extra is None else datasets.load_bytes(images.extra, "train")
    if (extra is None) != (recipe.extra_share == 0):
        raise UserError(
            "Extra images and --recipe.extra_share, their share of a batch, are given together or not at all."
        )
    task = tasks.make(asked, train_set)
    source = Source(Images(train_set.x, train_set.y), extra and Images(extra.x, extra.y), recipe.extra_share)
    identity = spec({"asked": asked, "images": images, "net": task.architecture, "recipe": recipe})
    held = datasets.load_bytes(images.data, "validation") if images.split == "fit" else test
    checks = Checks(task, held, check_every)
    history = _fit(task, source, recipe, out.with_suffix(".checkpoint"), identity, accelerator, checks)
    if not accelerator.is_main_process:
        return None
    model = task.model.cpu()
    if task.guide is not None:
        task.guide.cpu()
    card = weights.Card(
        name=out.stem,
        kind=task.kind,
        architecture=task.architecture,
        data=images.data,
        image=list(train_set.x.shape[1:]),
        command=command(),
        measured=task.measure(model, test),
        recipe=asdict(recipe) | {"images": asdict(images), "task": asdict(asked)},
        versions=versions(),
    )
    card = weights.save(out, model, card)
    write_text(out.with_suffix(".csv"), curves.table(history.rows))
    if history.checks:
        write_text(out.with_name(f"{out.stem}-checks.csv"), curves.checks(history.checks))
    curves.draw(out, history.rows, model if task.kind == "denoiser" else None, train_set, test)
    out.with_suffix(".checkpoint").unlink(missing_ok=True)
    return card


@dataclass(frozen=True)
class Checks:
    """Measures the averaged network every so many steps; 0 is never."""

    task: Task
    images: Data
    every: int = 0

    def measure(self, now: Progress) -> dict[str, float] | None:
        if not self.every or now.step % self.every:
            return None
        model = copy.deepcopy(self.task.model)
        model.load_state_dict(now.state()["average"], strict=False)
        return {"step": now.step} | self.task.measure(model.eval(), self.images)


def _fit(
    task: Task,
    source: Source,
    recipe: Recipe,
    checkpoint: Path,
    identity: Any,
    accelerator: Accelerator,
    checks: Checks,
) -> History:
    """Runs the loop, with checkpoints and a display in the first process."""
    resume = weights.load_checkpoint(checkpoint) if checkpoint.exists() else None
    if resume is not None and resume["identity"] != identity:
        raise UserError(
            f"{checkpoint} belongs to another training run; finish that one, delete it, or choose another output."
        )
    first = accelerator.is_main_process
    if task.guide is not None:
        task.guide.to(accelerator.device)
    history = History(recipe.batch, resume["history"], resume["checks"]) if resume else History(recipe.batch)
    if resume and first:
        console.print(f"Going on at step {resume['step']}.")
    saved = time.monotonic()
    with progress() if first else Quiet() as bar:
        shown = bar.add_task("training", total=recipe.steps, completed=resume["step"] if resume else 0)
        for now in train(task.model, task.objective, source, recipe, resume, accelerator):
            if history.note(now, now.step == recipe.steps):
                _, loss, rate = history.rows[-1]
                bar.update(shown, completed=now.step, description=f"loss {loss:.4f}, {rate:.0f} images/s")
            found = checks.measure(now) if first else None
            if found is not None:
                history.checks.append(found)
            if first and time.monotonic() - saved > SAVE_EVERY:
                state = now.state() | {"identity": identity, "history": history.rows, "checks": history.checks}
                weights.save_checkpoint(checkpoint, state)
                saved = time.monotonic()
    return history
