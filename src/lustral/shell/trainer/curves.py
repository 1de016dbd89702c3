"""What a training leaves to look at: the loss curve, a denoiser's PSNR beside its bound, and a grid of images."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from ...evaluate.protocol import Data
from ..files import replacing
from . import measures

MOST = 10_000
"""Training images up to which the bound of an ideal denoiser is computed."""


def table(rows: Sequence[Sequence[float]]) -> str:
    """The log as CSV."""
    lines = [f"{step:.0f},{loss:.6g},{rate:.1f}\n" for step, loss, rate in rows]
    return "step,loss,images_per_second\n" + "".join(lines)


def checks(found: Sequence[dict[str, float]]) -> str:
    """Measurements on the way as CSV."""
    return "".join(",".join(map(str, line)) + "\n" for line in [found[0].keys(), *(row.values() for row in found)])


def draw(out: Path, rows: Sequence[Sequence[float]], denoiser: nn.Module | None, train: Data, test: Data) -> None:
    """Writes NAME.png beside the weights, and for a denoiser NAME-denoised.png."""
    figure = Figure(figsize=(5 if denoiser is None else 10, 3.6), layout="constrained")
    panels = figure.subplots(1, 1 if denoiser is None else 2, squeeze=False)[0]
    steps, losses, _ = zip(*rows, strict=True)
    panels[0].plot(steps, losses, linewidth=0.8)
    panels[0].set(xlabel="step", ylabel="loss", yscale="log", title="Loss")
    if denoiser is not None:
        _psnr(panels[1], measures.psnr(denoiser, train, test, bound=len(train.ids) <= MOST))
        _grid(out.with_name(f"{out.stem}-denoised.png"), measures.grid(denoiser, test).numpy())
    with replacing(out.with_suffix(".png")) as scratch:
        figure.savefig(scratch, format="png", dpi=120)


def _psnr(panel, curve: measures.Curve) -> None:
    for label, values in (("ideal on training images", curve.ideal), ("training", curve.train), ("test", curve.test)):
        if values:
            panel.plot(curve.sigmas, values, label=label)
    panel.set(xlabel="sigma on [0, 1] images", ylabel="dB", xscale="log", title="Denoising PSNR")
    panel.legend()


def _grid(path: Path, images: np.ndarray) -> None:
    """Rows of images [rows, n, c, h, w], enlarged to at least 32 pixels each."""
    zoom = max(1, 32 // images.shape[-1])
    rows, n, c, h, w = images.shape
    sheet = images.transpose(0, 3, 1, 4, 2).reshape(rows * h, n * w, c).repeat(zoom, 0).repeat(zoom, 1)
    content = io.BytesIO()
    Image.fromarray((sheet * 255 + 0.5).astype(np.uint8).squeeze()).save(content, format="png")
    with replacing(path) as scratch:
        scratch.write_bytes(content.getvalue())
