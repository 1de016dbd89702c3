"""What the commands do, below the command line and above the rooms."""

from pathlib import Path

import numpy as np
import torch

from ..core import kernel
from ..core.errors import UserError
from ..core.noise import Key
from ..evaluate.protocol import Data, Job, System, run
from . import build, pictures, runner, weights
from . import data as datasets
from .files import replacing, write_text
from .ledger import Ledger
from .options import Classification, Purification, Resources, Search, ThreatModel
from .report import render
from .terminal import command, progress


def purify(source: Path, target: Path, how: Purification, seed: int | None, batch: int) -> Path:
    """Cleans the images of a file or a folder; ids of the noise are positions in the order of the files."""
    if batch < 1:
        raise UserError(f"batch must be at least 1, not {batch}.")
    if how.method == "none":
        raise UserError("Method none leaves images as they are; choose diffpure or adp.")
    denoiser, about = weights.load(how.denoiser, "denoiser")
    purifier = build.purifier(how, denoiser)
    jobs = list(pictures.pairs(source, target))
    key = Key.secret() if seed is None else Key(seed)
    first = 0
    with progress() as bar, torch.no_grad():
        task = bar.add_task("purifying", total=len(jobs))
        for path, out in jobs:
            found = pictures.read(path, about.image[0])
            _fits(found.x, about, path)
            ids = torch.arange(first, first + len(found.x))
            parts = [
                kernel.purify(purifier, found.x[i : i + batch], key.rng(ids[i : i + batch]))
                for i in range(0, len(ids), batch)
            ]
            pictures.write(found, torch.cat(parts) if parts else found.x, out)
            first += len(ids)
            bar.advance(task)
    return target


def _fits(x: torch.Tensor, about: weights.Card, path: Path) -> None:
    if x.shape[1] != about.image[0]:
        raise UserError(f"{path} has {x.shape[1]} channels, but {about.name} cleans images with {about.image[0]}.")
    net = about.architecture.get("net", {})
    multiple = net.get("patch", 1) * 2 ** (len(net.get("mult", (1, 2, 2))) - 1)
    if x.shape[2] % multiple or x.shape[3] % multiple:
        raise UserError(
            f"{path} is {x.shape[2]}×{x.shape[3]} pixels; {about.name} needs sides that are multiples of {multiple}, "
            "so pad or resize it."
        )


def _take(data: str, images: int) -> Data:
    if images < 1:
        raise UserError(f"images must be at least 1, not {images}.")
    return datasets.load(data, "test")[:images]


def _check(data: Data, classifier: str, system: System) -> None:
    about = weights.card(weights.find(classifier))
    if list(data.x.shape[1:]) != about.image:
        raise UserError(f"{about.name} takes images of shape {about.image}, but the data has {list(data.x.shape[1:])}.")
    with torch.no_grad():
        classes = system.defence.classifier(data.x[:1]).shape[1]
    if int(data.y.max()) >= classes:
        raise UserError(f"{about.name} knows labels 0 to {classes - 1}, but the data has {int(data.y.max())}.")


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
    resources: Resources,
) -> str:
    """Attacks, writes the candidates, and says how many of the judge's draws they fool."""
    build.prepare(resources)
    if out.suffix != ".npz":
        raise UserError(
            f"Adversarial images are written as .npz; name the output so, for example {out.with_suffix('.npz')}."
        )
    system = build.system("attacked", purification, classification)
    chosen = _take(data, images)
    _check(chosen, classification.classifier, system)
    job = Job(system, build.stage(stage, build.threat(threat), search, resources, 20), len(chosen.ids))
    chunks = []
    with progress() as bar:
        task = bar.add_task(stage, total=len(chosen.ids))
        for start in range(0, len(chosen.ids), resources.batch):
            chunks.append(run(job, chosen[start : start + resources.batch], Key(seed)))
            bar.advance(task, len(chunks[-1].ids))
    x, logits = torch.cat([c.x for c in chunks]), torch.cat([c.logits for c in chunks])
    with replacing(out) as scratch:
        np.savez_compressed(scratch, x=x.numpy(), x0=chosen.x.numpy(), y=chosen.y.numpy(), ids=chosen.ids.numpy())
    right = (logits.argmax(dim=-1) == chosen.y[:, None]).double().mean().item()
    return f"{stage}: {right:.1%} of {logits.shape[1]} fresh draws on each of {len(x)} images are still right."


def evaluate(
    out: Path,
    data: str,
    images: int,
    stages: list[str],
    purification: Purification,
    classification: Classification,
    threat: ThreatModel,
    search: Search,
    draws: int,
    seed: int,
    micro_batch: int | None,
    resources: Resources,
) -> dict:
    """Runs the stages into the ledger in ``out`` and folds it."""
    build.prepare(resources)
    name = purification.method if purification.method != "none" else "undefended"
    system = build.system(name, purification, classification, micro_batch)
    chosen = _take(data, images)
    _check(chosen, classification.classifier, system)
    against = build.threat(threat)
    jobs = [Job(system, build.stage(stage, against, search, resources, draws), len(chosen.ids)) for stage in stages]
    runner.execute(jobs, chosen, Key(seed), out, resources, {"micro_batch": micro_batch})
    with Ledger(out / "ledger.sqlite") as ledger:
        found = runner.results(
            ledger,
            jobs,
            title=f"{name} on {data}",
            command=command(),
            seed=seed,
            data={
                "name": data,
                "split": "test",
                "images": len(chosen.ids),
                "sha256": ledger.spec()["data"]["x"]["sha256"],
            },
            threat={"norm": threat.norm, "eps": threat.eps, "why": ""},
        )
        found["seconds"] = round(sum(row["seconds"] for row in found["rows"]), 1)
        shown = runner.pictures(ledger, jobs, chosen, Key(seed))
    runner.publish(out, found, shown)
    return found


def report(folder: Path) -> Path:
    """Writes the page of a finished run again."""
    found, images = runner.read(folder)
    page = folder / "report.html"
    write_text(page, render(found, images))
    return page
