"""Images for people: clean, attacked and purified, what was said of each, and one purification as a film."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.kernel import trace
from ..core.noise import Key
from ..evaluate.protocol import Data, Job
from .ledger import Ledger
from .run import Run, decisions

SHOWN = 8


def pictures(ledger: Ledger, jobs: Sequence[Job], data: Data, key: Key) -> dict[str, np.ndarray]:
    """The images that the last attack cost most, over all systems alike; the first ones where none was attacked.

    Per system arrays ``clean``, ``attacked``, ``purified`` [k, c, h, w] in [0, 1], labels ``said`` [k, 3] on each of
    these, and the film of the first image, ``trajectory``; ``y`` [k] has the true labels.
    """
    run = Run(ledger, jobs)
    last = {name: run.last(name) for name in run.systems}
    lost = [_lost(run, job) for job in last.values()]
    common = [image for image in data.ids.tolist() if lost and all(image in each for each in lost)]
    worst = sorted(common, key=lambda image: -sum(each[image] for each in lost))[:SHOWN]
    place = {image: row for row, image in enumerate(data.ids.tolist())}
    shown = data[[place[image] for image in worst]]
    out: dict[str, np.ndarray] = {"y": shown.y.numpy()}
    for name, job in last.items() if worst else ():
        attacked = ledger.candidates(job.system.name, job.stage.name, worst)
        views = _views(job.system.defence, shown, attacked, key.fold(name))
        out |= {f"{name}/{what}": array for what, array in views.items()}
    return out


def _lost(run: Run, job: Job) -> dict[int, float]:
    """The share of decisions that the attack turned from right to wrong, by image."""
    stages = run.of(job.system.name)
    clean, attacked = (decisions(run, stages[name]) if name in stages else {} for name in ("clean", job.stage.name))
    return {image: clean.get(image, 1.0) - share for image, share in attacked.items()}


@torch.no_grad()
def _views(defence, shown: Data, x: Tensor, key: Key) -> dict[str, np.ndarray]:
    frames = [x, x]
    if defence.purifier is not None:
        frames = list(trace(defence.purifier, x, key.fold("pictures").rng(shown.ids)))
    said = [defence.classify(images).argmax(dim=1) for images in (shown.x, x, frames[-1])]
    out = {
        "clean": shown.x.numpy(),
        "attacked": x.numpy(),
        "purified": frames[-1].numpy(),
        "said": torch.stack(said, dim=1).numpy(),
    }
    if defence.purifier is not None:
        film = torch.stack([x, *frames])
        distance = (film - shown.x).square().flatten(2).mean(dim=2).sqrt()
        out |= {"trajectory": film[:, 0].clone().numpy(), "trajectory_norm": distance.mean(dim=1).numpy()}
    return out
