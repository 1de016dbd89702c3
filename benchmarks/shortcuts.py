"""How wrong the gradient is that each published code takes: ``python -m benchmarks.shortcuts``.

On digits, with the networks that ship: the exact gradient of the cross-entropy behind a purifier, against the same with
a part of the purifier taken as constant. Exact gradients are checked against plain autograd in the same run.
"""

from dataclasses import dataclass, replace
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import store
from lustral.attacks.levels import HeldLevel
from lustral.core.adjoint import Adjoint, Checkpointed, Direct, Identity
from lustral.core.kernel import purify
from lustral.core.noise import Key, Rng
from lustral.core.purifier import Purifier
from lustral.purifiers.adaptive import Adaptive
from lustral.purifiers.diffusion import Guidance
from lustral.purifiers.presets import adp, agdm, diffpure, gdmp, ssni
from lustral.purifiers.rounds import Rounds
from lustral.shell import systems, weights
from lustral.shell.images import data

IMAGES = 32


class Still(Adaptive):
    """ADP whose step sizes are taken as constants."""

    def _step_size(self, f: Tensor, ahead: Tensor) -> Tensor:
        return super()._step_size(f, ahead).detach()


@dataclass(frozen=True)
class Held:
    """Guidance without a gradient through the input that it compares with, or through itself altogether."""

    inner: Guidance
    itself: bool

    def __call__(self, y: Tensor, sigma: Tensor, x: Tensor, rng: Rng) -> Tensor:
        found = self.inner(y, sigma, x.detach(), rng)
        return found.detach() if self.itself else found


def guided(made: Rounds, itself: bool) -> Rounds:
    return replace(made, stages=tuple(replace(s, guidance=Held(s.guidance, itself)) for s in made.stages))


def cases() -> list[tuple[str, str, Purifier, Purifier, Adjoint]]:
    """(system, shortcut, the purifier, the one that is differentiated instead, how)."""
    denoiser, about = weights.load("digits-unet", "denoiser")
    exact = Checkpointed()
    clean = systems.reference(about)
    rows = []
    for name, base in (("DiffPure", diffpure(denoiser, 0.1, "ddpm", steps=10)), ("GDMP", gdmp(denoiser, steps=9))):
        made = ssni(base, clean)
        rows.append((f"SSNI-N over {name}", "t*(x) constant (the published attack)", made, made, HeldLevel()))
    for likeness in ("mse", "ssim"):
        made = gdmp(denoiser, likeness=likeness, steps=9)
        rows.append((f"GDMP, {likeness}", "the guide constant", made, guided(made, False), exact))
        rows.append((f"GDMP, {likeness}", "guidance constant", made, guided(made, True), exact))
        rows.append((f"GDMP, {likeness}", "purifier as identity (the published attack)", made, made, Identity()))
    guide, _ = weights.load("digits-trades", "classifier")
    made = agdm(denoiser, guide, steps=10)
    rows.append(("AGDM-style", "the input's representation constant", made, guided(made, False), exact))
    rows.append(("AGDM-style", "guidance constant", made, guided(made, True), exact))
    made = adp(denoiser, 0.25)
    still = Still(**{name: getattr(made, name) for name in made.__dataclass_fields__})
    rows.append(("ADP", "step sizes constant", made, still, exact))
    rows.append(("ADP", "purifier as identity (BPDA)", made, made, Identity()))
    return rows


def gradient(purifier: Purifier, adjoint: Adjoint, x: Tensor, y: Tensor) -> Tensor:
    classifier, _ = weights.load("digits-cnn", "classifier")
    leaf = x.clone().requires_grad_()
    logits = classifier(purify(purifier, leaf, Key(0).rng(len(x)), adjoint=adjoint))
    return torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)[0].flatten(1).double()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Per row; gradients of sure decisions are tiny, which torch's own cosine takes for zero."""
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))


if __name__ == "__main__":
    test = data.load("digits", "test")[:IMAGES]
    lines = []
    for name, what, purifier, other, how in cases():
        exact = gradient(purifier, Checkpointed(), test.x, test.y)
        check = cosine(exact, gradient(purifier, Direct(), test.x, test.y)).min()
        taken = gradient(other, how, test.x, test.y)
        error = median(((taken - exact).norm(dim=1) / exact.norm(dim=1)).tolist())
        along = median(cosine(taken, exact).tolist())
        lines.append([name, what, f"{error:.1%}", f"{along:.3f}", f"{check:.6f}"])
    head = ["system", "shortcut", "relative error", "cosine to exact", "exact to plain autograd"]
    print(f"Medians over {IMAGES} images; the last column is a minimum.\n")
    print(found := store.Table(head, lines))
    store.keep("shortcuts", {"shortcuts": [found]})
