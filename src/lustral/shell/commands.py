"""What the commands do, below the command line and above the rooms."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core import check
from ..core.errors import UserError
from ..core.lanes import Lanes
from ..core.noise import Key, veiled
from ..denoisers.base import Meter
from ..evaluate.protocol import Job, Task
from ..training.batches import as_floats, spread_rows
from . import build, folder, gauge, labels, plan, runner, standard, stored, strip, systems, weights
from . import device as devices
from .files import check_suffix, check_writable, replacing, write_text
from .images import data as datasets
from .images import decode, download, pictures
from .ledger import Ledger
from .options import Classification, Evaluation, Precision, Purification, Resources, Search, Shown, ThreatModel
from .report import render
from .terminal import command, progress


def data(name: str, place: Path | None, source: str | None) -> Iterator[str]:
    """Fetches a standard set where it is not there yet, and says where it is, what it holds, and what to do next."""
    if name != "digits":  # which come with scikit-learn
        there = datasets.folder() / name if place is None else place
        fetched = download.fetch(name, there, source)
        already = f"{name} is there already, in {datasets.folder() if place is None else place}"
        yield f"→ {there}" if fetched else already
    used = name if place is None or name == "digits" else str(place)
    parts = datasets.parts(used)
    train, validation, test = (parts.pick(split, used) for split in ("train", "validation", "test"))
    shape, classes = "×".join(map(str, train.x.shape[1:])), int(train.y.max()) + 1
    yield (
        f"{name}: {len(train.ids):,} training images ({len(validation.ids):,} of them for validation), "
        f"{len(test.ids):,} test images, {shape}, {classes} classes"
    )
    yield f"next: lustral train classifier {name}.safetensors --data {shlex.quote(used)}"


def purify(
    source: Path,
    target: Path,
    how: Purification,
    seed: int | None,
    batch: int,
    shown: Shown | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
) -> list[Path]:
    """Cleans the images of a file or a folder; ids of the noise are positions in the order of the files.

    Files that cannot be read or cleaned are named at the end, when the others are written.
    Returns what it wrote: the target, and the film strip of the first images if that was asked for.
    """
    devices.check(device)
    if batch < 1:
        raise UserError(f"batch must be at least 1, not {batch}.")
    if how.method == "none":
        raise UserError("Method none leaves images as they are; choose another method.")
    shown = shown or Shown()
    if shown.images < 1:
        raise UserError(f"A film strip shows at least 1 image, not {shown.images}.")
    jobs = list(pictures.pairs(source, target))
    how = standard.purification(how, pictures.like(path for path, _ in jobs))
    denoiser, about = weights.load(how.denoiser, "denoiser")
    fix = partial(devices.on, device, precision=precision)
    there = fix(denoiser, precision=systems.denoisers_precision(how.method, precision))
    meter = Meter()
    purifier = systems.purifier(how, systems.Networks(meter.watch(there), about, fix, meter.watch))
    key = Key.secret() if seed is None else Key(seed)
    judge = None if shown.classifier is None else _judge(shown.classifier, about)
    first, transparent, far, failed = 0, 0, False, []
    with progress() as bar, torch.no_grad():
        task = bar.add_task("purifying", total=len(jobs))
        for group in pictures.groups(jobs, about.image[0], batch, failed):
            found = [one for one, _ in group]
            transparent += sum(one.transparent for one in found)
            x = torch.cat([one.x for one in found])
            far = far or weights.say_far(about, x)
            ids = torch.arange(first, first + len(x))
            each = len(group) / max(1, len(x) * gauge.calls(purifier))
            with gauge.gauged(meter, each, len(group), partial(bar.advance, task)):
                clean = Lanes(batch)(purifier, x, veiled(key.rng(ids))) if len(ids) else x
                failed += _written(group, clean.split([len(one.x) for one in found]))
            if shown.strip is not None and not first:
                few = x[: shown.images]
                strip.draw(shown.strip, strip.film(purifier, few, key.rng(ids[: shown.images]), judge))
            first += len(ids)
        decode.say_white(transparent, len(jobs))
        if failed:
            raise pictures.failure(failed, len(jobs))
    return [target] if shown.strip is None else [target, shown.strip]


def _written(group: list[tuple[pictures.Source, Path]], clean: Sequence[Tensor]) -> list[str]:
    """Writes pictures; says of which the numbers overflowed, and leaves those."""
    failed = []
    for (one, out), part in zip(group, clean, strict=True):
        if bool(part.isfinite().all()):
            pictures.write(one, part, out)
        else:
            failed.append(check.overflowed(str(one.path)))
    return failed


def reference(name: str, source: str | None, images: int, device: str = "cpu") -> weights.Card:
    """Measures the score norms of clean training images and writes them into a denoiser's card."""
    devices.check(device)
    denoiser, about = weights.load(name, "denoiser")
    denoiser = devices.on(device, denoiser)
    if images < 2:
        raise UserError(f"A reference needs at least 2 images, not {images}.")
    found = datasets.load(source or about.data, "train")
    found = found[spread_rows(len(found.ids), images)]
    if list(found.x.shape[1:]) != about.image:
        raise UserError(
            f"{name} takes images of shape {about.image}, not {list(found.x.shape[1:])}; choose other data."
        )
    known = {}
    for kind, prefix in systems.PREFIXES.items():
        measured = systems.measure(denoiser, kind, found.x, Key(0).fold("reference").rng(found.ids))
        known |= {prefix + name: round(value, 6) for name, value in measured._asdict().items() if name != "kind"}
    return weights.describe(weights.find(name), replace(about, measured=about.measured | known))


def _judge(name: str, other: weights.Card) -> torch.nn.Module:
    """A classifier for images like a denoiser's."""
    classifier, about = weights.load(name, "classifier")
    if about.image != other.image:
        raise UserError(f"{name} takes images of shape {about.image}, {other.name} {other.image}; choose a pair.")
    return classifier


def attack(
    out: Path,
    data: str,
    images: int,
    stage: str,
    purification: Purification,
    classification: Classification,
    threat: ThreatModel,
    search: Search,
    seed: int,
    precision: Precision,
    resources: Resources,
) -> str:
    """Attacks, writes the candidates, and says how many of the judge's draws they fool."""
    build.prepare(resources)
    check_suffix(out, ".npz", "Adversarial images are written as .npz")
    check_writable(out)
    if images < 1:
        raise UserError(f"images must be at least 1, not {images}.")
    source = datasets.parts(data)
    how, judge = standard.system(purification, classification, data)
    chosen = labels.meet(source, data, [judge.classifier]).pick("test", data)[:images]
    chosen = chosen._replace(x=as_floats(chosen.x))
    against = build.threat(standard.threat(threat, data))
    system = build.system("attacked", how, judge, device=resources.device, precision=precision)
    plan.check(chosen, judge.classifier, system)
    plan.say_far([how], chosen)
    job = Job(system, build.stage(stage, system, against, search, resources, 20), len(chosen.ids))
    chunks = []
    with progress() as bar:
        task = bar.add_task(stage, total=runner.work(job) * len(chosen.ids))
        for start in range(0, len(chosen.ids), resources.batch):
            part = chosen[start : start + resources.batch]
            chunks.append(runner.told(Task(job, part, part.x), Key(seed), bar, task))
    x, logits = torch.cat([c.x for c in chunks]), torch.cat([c.logits for c in chunks])
    with replacing(out) as scratch:
        np.savez_compressed(scratch, x=x.numpy(), x0=chosen.x.numpy(), y=chosen.y.numpy(), ids=chosen.ids.numpy())
    right = (logits.argmax(dim=-1) == chosen.y[:, None]).double().mean().item()
    return f"{stage}: {right:.1%} of {logits.shape[1]} fresh draws on each of {len(x)} images are still right."


def evaluate(
    options: Evaluation, out: Path, resources: Resources, part: str | None, width: float | None, allow_red: bool
) -> dict | None:
    """Runs an evaluation into the ledger in ``out`` and folds it; a shard is left for ``merge`` to fold."""
    build.prepare(resources)
    planned = plan.make(options, resources)
    plan.run(planned, out, resources, part=part, width=width)
    if part is not None:
        return None
    return plan.finish(planned, out, command(), allow_red)


def merge(out: Path, parts: list[Path], allow_red: bool) -> dict:
    """Puts the shards of one run together and folds them."""
    if not parts:
        raise UserError("Name the folders of the shards to merge.")
    if out.resolve() in [place.resolve() for place in parts]:
        raise UserError(f"Shards are merged into a folder of their own, not into {out}, which is one of them.")
    with Ledger(parts[0] / "ledger.sqlite") as first:
        spec, options = first.spec(), stored.read_json(parts[0] / "run.json", "options")
    with Ledger(out / "ledger.sqlite", spec) as ledger:
        for place in parts:
            with Ledger(place / "ledger.sqlite") as other:
                ledger.take(other)
                ledger.note(versions=other.facts().get("versions"))
    write_text(out / "run.json", json.dumps(options, indent=1) + "\n")
    planned = plan.load(out, Resources())
    plan.check_complete(planned, out)
    return plan.finish(planned, out, command(), allow_red)


def report(run_folder: Path) -> Path:
    """Writes the page of a finished run again."""
    found, images = folder.read(run_folder)
    page = run_folder / "report.html"
    write_text(page, render(found, images))
    return page
