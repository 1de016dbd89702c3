"""Honest systems as controls: none may be red, unless its own gradient does not tell how it changes."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from ..attacks.estimators import low_pass
from ..core.noise import Rng, Veiled
from ..core.vote import MeanLogits
from ..defence import Defence, defend
from ..purifiers.presets import diffpure
from . import build, standard
from .control import Control, Parts
from .options import Classification, Purification


def _blurred(x: Tensor) -> Tensor:
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _smooth_spectrum(x: Tensor) -> Tensor:
    """What JPEG does but for its rounding: the high frequencies of the cosine transform are left out."""
    rows, columns = (low_pass(n, 0.6).to(x) for n in x.shape[2:])
    return rows @ x @ columns


def _median(x: Tensor) -> Tensor:
    """The median of every 3×3 neighbourhood."""
    return pad(x, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(dim=4).values


def _noised(x: Tensor, rng: Rng | Veiled) -> Tensor:
    return (x + 0.2 * rng.normal(x)).clamp(0, 1)


def _in_bfloat16(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def logits(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return net(x).to(x.dtype)

    return logits


def _traced(p: Parts) -> Defence:
    return Defence(torch.jit.trace(p.net, p.data.x[:2].to(p.device)))


class Experts(nn.Module):
    """A mixture of experts: every image goes to the one of a network's heads that a gate names."""

    def __init__(self, net: nn.Module, pixels: int, classes: int = 10, experts: int = 3):
        super().__init__()
        self.net, self.gate = net, nn.Linear(pixels, experts)
        self.heads = nn.ModuleList([nn.Linear(classes, classes) for _ in range(experts)])
        with torch.no_grad():
            stripes = torch.arange(pixels) % experts == torch.arange(experts)[:, None]
            self.gate.weight.copy_(stripes / pixels)
            for k, head in enumerate(self.heads):
                head.weight.copy_((1 + 0.01 * k) * torch.eye(classes))
                head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        which, z = self.gate(x.flatten(1)).argmax(dim=1), self.net(x)
        for k, head in enumerate(self.heads):
            rows = (which == k).nonzero()[:, 0]
            z = z.index_copy(0, rows, head(z[rows])) if len(rows) else z
        return z


def _experts(p: Parts) -> Defence:
    return Defence(Experts(p.net, p.data.x[0].numel()).to(p.device).eval())


def _shipped(**how: object) -> Control:
    """A purifier by the name of its method, with the networks that ship for the digits."""

    def make(p: Parts) -> Defence:
        parts = standard.system(Purification(**how), Classification(), "digits")
        return build.system("control", *parts, device=p.device).defence

    return Control(make, random=True)


HONEST = {
    "sound": Control(lambda p: Defence(p.net)),
    "sound, DiffPure": Control(lambda p: defend(p.net, diffpure(p.denoiser, 0.1, "ddim", steps=3)), random=True),
}

MORE_HONEST = {
    "softmax": Control(lambda p: Defence(nn.Sequential(p.net, nn.Softmax(1)))),
    "a surer softmax": Control(lambda p: Defence(lambda x: (2 * p.net(x)).softmax(dim=1))),
    "float() inside": Control(lambda p: Defence(lambda x: p.net(x.float()))),
    "bfloat16 inside": Control(lambda p: Defence(_in_bfloat16(p.net))),
    "mixture of experts": Control(_experts),
    "TorchScript": Control(_traced),
    "noise": Control(lambda p: defend(p.net, _noised), random=True),
    "noise, 4 votes": Control(lambda p: defend(p.net, _noised, MeanLogits(4)), random=True),
    "blur": Control(lambda p: defend(p.net, _blurred)),
    "low frequencies": Control(lambda p: defend(p.net, _smooth_spectrum)),
    "median": Control(lambda p: defend(p.net, _median)),
    "DiffPure, ddpm": _shipped(steps=3),
    "DiffPure, sde": _shipped(solver="sde", steps=5),
    "DiffPure, ode": _shipped(solver="ode", steps=3),
    "ADP": _shipped(method="adp", steps=3),
    "GDMP": _shipped(method="gdmp", steps=2, rounds=2),
    "ADBM": _shipped(method="adbm", denoiser="digits-adbm", steps=3),
    "ADDT": _shipped(denoiser="digits-addt", steps=3),
    "SSNI": _shipped(ssni="logistic", steps=3),
    "AGDM, weight 1": _shipped(method="agdm", steps=3, class_weight=1.0),
    # Its gradient is exact and tells no step: probably since the gradient of a guide of ReLUs, which guides it, jumps.
    "AGDM, weight 100": replace(_shipped(method="agdm", steps=3), expected=("followed-gradient", "path-integral")),
}
"""Those of ``--thorough``."""
