"""``lustral train``: from images to safetensors with a card, a log and pictures, surviving interruption."""

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from ...core.errors import UserError
from ...core.spec import digest
from ...evaluate.protocol import Data
from ...training.batches import Images, Source
from ...training.loop import Progress, train
from ...training.recipe import Recipe
from .. import ending, labels, origins, weights
from ..files import check_suffix, check_writable, write_text
from ..images import data as datasets
from ..terminal import Quiet, command, console, progress, versions
from . import curves, tasks
from .tasks import Asked, Task

SAVE_EVERY = 60.0
EVERY = 20
"""Steps that a line of the log is the mean of."""
PATIENCE = timedelta(hours=6)
"""How long processes wait for the first one, which alone measures and saves."""


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
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, now: Progress, seconds: float, last: bool) -> None:
        """Takes in a step that took so many seconds."""
        if not math.isfinite(now.loss):
            raise UserError(
                f"The loss is {now.loss} at step {now.step}: the training has diverged. Choose a smaller --recipe.lr "
                "or a --recipe.clip, and another output, or delete the checkpoint."
            )
        self.losses.append(now.loss)
        self.seconds += seconds
        if now.step % EVERY == 0 or last:
            count = len(self.losses)
            self.rows.append([now.step, sum(self.losses) / count, self.batch * count / max(1e-9, self.seconds)])
            self.losses, self.seconds = [], 0.0


@dataclass(frozen=True)
class Checks:
    """Measures the averaged network every so many steps; 0 is never."""

    task: Task
    images: Data
    every: int = 0

    def measure(self, now: Progress) -> list[dict[str, float]]:
        """One measurement, or none."""
        if not self.every or now.step % self.every:
            return []
        model = copy.deepcopy(self.task.model)
        model.load_state_dict(now.state()["average"], strict=False)
        found = self.task.measure(model.eval(), self.images)
        return [{"step": now.step} | {name.removeprefix("test_"): value for name, value in found.items()}]


def run(
    asked: Asked,
    out: Path,
    choice: Choice,
    recipe: Recipe,
    check_every: int = 0,
    licence: str | None = None,
    device: str | None = None,
) -> weights.Card | None:
    """Trains what was asked for and writes ``out``; returns its card, or None in a process that is not the first.

    An interrupted run goes on where it stopped, also with another number of processes. If ``check_every`` is not 0,
    the averaged network is measured every so many steps: on validation images where those were kept out, else on test
    images. Without a ``device`` a GPU is used where there is one.
    """
    check_suffix(out, ".safetensors", "Weights are .safetensors files")
    check_writable(out)
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    cpu = device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[patience])
    parts = labels.meet(datasets.parts(choice.data), choice.data, tasks.judges(asked))
    train_set, test = (parts.pick(split, choice.data) for split in (choice.split, "test"))
    task = tasks.make(asked, train_set, len(parts.classes))
    tasks.try_part(task, train_set, recipe.batch // (recipe.accumulate * accelerator.num_processes))
    source = _source(choice, recipe, train_set, parts.classes)
    held = parts.pick("validation", choice.data) if choice.split == "fit" else test
    pixels = [t for images in (source.real, source.extra) if images for t in (images.x, images.y)]
    networks = {"net": task.model, "guide": task.guide}
    identity = digest({"asked": asked, "choice": choice, "recipe": recipe, "images": pixels} | networks)
    checkpoint = out.with_suffix(".checkpoint")
    told = asdict(recipe) | {"images": asdict(choice), "task": asdict(asked), "identity": identity}
    if out.exists() and not checkpoint.exists():
        return _finished(out, told) if accelerator.is_main_process else None
    history = _fit(task, source, recipe, checkpoint, identity, accelerator, Checks(task, held, check_every))
    if not accelerator.is_main_process:
        return None
    half = recipe.stored == "float16"
    if half:  # before the measurements, which are of what is written
        task.model.load_state_dict(weights.halved(task.model.state_dict()))
    seen = origins.kept([part.x for part in (source.real, source.extra) if part], tasks.before(asked))
    card = weights.Card(
        name=out.stem,
        kind=task.kind,
        architecture=task.architecture,
        data=choice.data,
        image=list(train_set.x.shape[1:]),
        command=command(),
        classes=list(parts.classes) if task.kind == "classifier" else [],
        licence=licence or weights.Card.licence,
        measured=task.measure(task.model, test),
        recipe=told,
        versions=versions(),
        training=origins.told(choice.data, choice.split, seen),
    )
    card = weights.save(out, task.model, card, half, origins.written(seen))
    write_text(out.with_suffix(".csv"), curves.table(history.rows))
    if history.checks:
        write_text(out.with_name(f"{out.stem}-checks.csv"), curves.checks(history.checks))
    curves.draw(out, history.rows, task.model if task.kind == "denoiser" else None, train_set, test)
    checkpoint.unlink(missing_ok=True)
    return card


def _finished(out: Path, told: dict[str, Any]) -> weights.Card:
    """The card of weights that this training has written already; those of another one are not written over."""
    card = weights.card(out)
    if card.recipe != json.loads(json.dumps(told)):
        raise UserError(f"{out} holds the weights of another training; choose another output, or delete it first.")
    console.print(f"{out} is finished already; delete it to train again.")
    return card


def _source(choice: Choice, recipe: Recipe, train_set: Data, names: Sequence[str]) -> Source:
    """The images of the training, and the extra ones."""
    if (choice.extra is None) != (recipe.extra_share == 0):
        raise UserError(
            "Extra images and their share of a batch, --recipe.extra_share, are given together or not at all."
        )
    shape, classes = train_set.x.shape[1:], max(len(names), int(train_set.y.max()) + 1)
    if recipe.crop >= min(shape[1:]):
        raise UserError(f"crop must be smaller than the images ({shape[1]}×{shape[2]}), not {recipe.crop}.")
    real = Images(train_set.x, train_set.y)
    if choice.extra is None:
        return Source(real)
    if not round(recipe.batch * recipe.extra_share):
        raise UserError(
            f"A share of {recipe.extra_share:g} of a batch of {recipe.batch} is less than one image; enlarge either."
        )
    more = datasets.parts(choice.extra)
    if more.classes and names:
        more = labels.renumbered(more, labels.by_name(more, choice.extra, names, choice.data))
    extra = more.pick("train", choice.extra)
    if extra.x.shape[1:] != shape or int(extra.y.max()) >= classes:
        raise UserError(
            f"{choice.extra} must hold images of shape {list(shape)} and labels 0 to {classes - 1} like the training "
            f"images, not {list(extra.x.shape[1:])} and up to {int(extra.y.max())}."
        )
    return Source(real, Images(extra.x, extra.y), recipe.extra_share)


def _begin(checkpoint: Path, identity: str, accelerator: Accelerator) -> dict[str, Any] | None:
    """The checkpoint that all processes go on from, None where there is none."""
    found = weights.load_checkpoint(checkpoint) if checkpoint.exists() else None
    if found is not None and found["identity"] != identity:
        raise UserError(
            f"{checkpoint} belongs to another training run; finish that one, delete it, or choose another output."
        )
    step = found["step"] if found else 0
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device))
    if (steps != step).any():
        raise UserError(f"Not all processes find the same {checkpoint.name}; write to a folder that they share.")
    if step and accelerator.is_main_process:
        console.print(f"Going on at step {step}.")
    return found


def _fit(
    task: Task,
    source: Source,
    recipe: Recipe,
    checkpoint: Path,
    identity: str,
    accelerator: Accelerator,
    checks: Checks,
) -> History:
    """Runs the loop, with checkpoints, measurements and a display in the first process.

    Asked to end, it does so after the step that runs, which is kept.
    """
    first = accelerator.is_main_process
    resume = _begin(checkpoint, identity, accelerator)
    history = History(recipe.batch, **resume["history"]) if resume else History(recipe.batch)
    if task.guide is not None:
        task.guide.to(accelerator.device)
    saved = since = time.monotonic()
    with progress() if first else Quiet() as bar, ending.awaited() as end:
        shown = bar.add_task("training", total=recipe.steps, completed=resume["step"] if resume else 0)
        for now in train(task.model, task.objective, source, recipe, resume, accelerator):
            resume, last = None, now.step == recipe.steps
            history.note(now, time.monotonic() - since, last)
            if history.rows:
                _, loss, rate = history.rows[-1]
                bar.update(shown, completed=now.step, description=f"loss {loss:.4f}, {rate:.0f} images/s")
            if first:
                history.checks += checks.measure(now)
            if first and (last or end.asked or time.monotonic() - saved > SAVE_EVERY):
                log = {name: value for name, value in asdict(history).items() if name != "batch"}
                weights.save_checkpoint(checkpoint, now.state() | {"identity": identity, "history": log})
                saved = time.monotonic()
            if end.asked:
                raise KeyboardInterrupt(f"step {now.step} of {recipe.steps} is kept")
            since = time.monotonic()
    return history
