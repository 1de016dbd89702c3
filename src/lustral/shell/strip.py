"""A film strip: what a purifier does to some images, step by step, and what a classifier says of every frame."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..core import outputs
from ..core.noise import Rng, veiled
from ..core.purifier import Purifier
from ..defence import Classifier
from ..purifiers.adaptive import AdaptiveState
from ..purifiers.compose import ChainState, Pinned, When, WhenState
from ..purifiers.diffusion import Diffusion, TableState
from ..purifiers.rounds import RoundsState
from .files import replacing

FRAMES = 11


class Frame(NamedTuple):
    """Images [b, c, h, w] after a step (0: as they begin), facts about each, and the classifier's labels [b]."""

    step: int
    images: Tensor
    facts: list[str]
    labels: Tensor | None


@torch.no_grad()
def film(purifier: Purifier, x: Tensor, rng: Rng, classifier: Classifier | None = None) -> list[Frame]:
    """The input, the beginning, and evenly chosen steps up to the last one."""
    n, rng = purifier.n_steps, veiled(rng)
    shown = {round(k * n / (FRAMES - 1)) for k in range(FRAMES)}
    labels = partial(_labels, classifier)
    frames = [Frame(-1, x, ["input"] * len(x), labels(x))]
    state = purifier.init(x, rng.fold("init"))
    for i in range(n + 1):
        if i in shown:
            images = purifier.readout(state)
            frames.append(Frame(i, images, facts(purifier, state, len(x)), labels(images)))
        if i < n:
            state = purifier.step(i, state, rng.fold("step", i))
    return frames


def _labels(classifier: Classifier | None, x: Tensor) -> Tensor | None:
    return None if classifier is None else outputs.logits(classifier(x), len(x)).argmax(dim=1)


def facts(purifier: Purifier, state: Any, n: int) -> list[str]:
    """What a state says of each of n samples: its noise level, score norm or step size."""
    if isinstance(purifier, Pinned):
        return facts(purifier.inner, state, n)
    if isinstance(state, RoundsState):
        inner = facts(purifier.stages[state.stage], state.inner, n)
        norms = [""] * n if state.seen is None else [f"|s| {value:.0f} " for value in state.seen.tolist()]
        return [norm + text for norm, text in zip(norms, inner, strict=True)]
    if isinstance(state, ChainState):
        return facts(purifier.stages[state.stage], state.inner, n)
    if isinstance(state, WhenState):
        return _branches(purifier, state, n)
    if isinstance(state, TableState) and isinstance(purifier, Diffusion):
        if state.table is None:
            return [f"t* {purifier.t_star:.3g}"] * n
        return [f"t* {t:.3g}" for t in purifier.schedule.time(state.table.sigma_in).tolist()]
    if isinstance(state, AdaptiveState):
        return [f"α {alpha:.2g}" + ("" if moving else " still") for alpha, moving in _pairs(state)]
    return [""] * n


def _branches(purifier: When, state: WhenState, n: int) -> list[str]:
    """Each sample's fact, from the branch that it takes."""
    found = [""] * n
    for rows, branch, inner in (
        (state.then_rows, purifier.then, state.then),
        (state.else_rows, purifier.otherwise, state.otherwise),
    ):
        if inner is not None:
            for row, fact in zip(rows.tolist(), facts(branch, inner, len(rows)), strict=True):
                found[row] = fact
    return found


def _pairs(state: AdaptiveState) -> list[tuple[float, bool]]:
    return list(zip(state.alpha.tolist(), state.moving.tolist(), strict=True))


def draw(path: Path, frames: list[Frame]) -> None:
    """Writes a PNG: a row for each image, a column for each frame."""
    rows = len(frames[0].images)
    figure = Figure(figsize=(1.25 * len(frames), 1.65 * rows), layout="constrained")
    for column, frame in enumerate(frames):
        for row in range(rows):
            axes = figure.add_subplot(rows, len(frames), row * len(frames) + column + 1)
            image = frame.images[row].clamp(0, 1).movedim(0, -1)
            axes.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            said = "" if frame.labels is None else f" → {int(frame.labels[row])}"
            axes.set_title("input" + said if frame.step < 0 else f"{frame.step}{said}", fontsize=7, pad=2)
            axes.set_xlabel("" if frame.step < 0 else frame.facts[row], fontsize=6, labelpad=2)
    with replacing(path) as scratch:
        figure.savefig(scratch, format="png", dpi=110)
