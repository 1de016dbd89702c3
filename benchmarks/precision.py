"""What bfloat16 does to purified images: ``python -m benchmarks.precision [IMAGES]``.

The first CIFAR-10 test images through the systems of the tables on the same noise, with denoisers in float32 and in
bfloat16. ADP's computes in float32 whatever ``--precision`` says; here it is made to use bfloat16 too. The classifier
judges in float32.
"""

import sys
from functools import partial

import torch
from torch import Tensor

from benchmarks.cifar10 import CONFIGS
from benchmarks.store import Table
from lustral.core.adjoint import Direct
from lustral.core.lanes import Lanes
from lustral.core.noise import Key
from lustral.defence import Classifier
from lustral.shell import config, device, systems, weights
from lustral.shell.images import data
from lustral.shell.options import Precision, Purification

ROWS = ("solvers", "ssni", "adp")


@torch.no_grad()
def purified(how: Purification, x: Tensor, precision: Precision) -> Tensor:
    """Images cleaned by the system's denoiser in a precision."""
    denoiser, about = weights.load(how.denoiser, "denoiser")
    fix = partial(device.on, "cpu", precision=precision)
    purifier = systems.purifier(how, systems.Networks(fix(denoiser), about, fix))
    return Lanes(64, Direct())(purifier, x, Key(0).rng(len(x)))


def row(name: str, how: Purification, images: data.Data, judge: Classifier) -> list[str]:
    """How far a system moves images, how far apart the two precisions leave them, and how many are recognised."""
    full, half = (purified(how, images.x, precision) for precision in ("float32", "bfloat16"))
    moved, apart = ((a - b).square().mean().sqrt().item() for a, b in ((full, images.x), (full, half)))
    decisions = [judge(x).argmax(dim=1) for x in (full, half)]
    right = [f"{100 * (found == images.y).float().mean():.1f}%" for found in decisions]
    return [name, f"{moved:.4f}", f"{apart:.4f}", *right, str((decisions[0] != decisions[1]).sum().item())]


if __name__ == "__main__":
    images = data.load("cifar10", "test")[: int(sys.argv[1]) if len(sys.argv) > 1 else 128]
    lines = []
    for options in (config.read(CONFIGS / f"{name}.yaml") for name in ROWS):
        judge, _ = weights.load(options.classification.classifier, "classifier")
        for name, chosen in options.systems.items():
            lines.append(row(name, chosen.purification, images, torch.no_grad()(judge)))
            print(f"{name} is done", file=sys.stderr)
    head = ["system", "moved, rms", "apart by, rms", "right in float32", "in bfloat16", "decisions that differ"]
    print(Table(head, lines))
