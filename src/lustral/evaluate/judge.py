"""The judge: verifies what an attack hands in, and looks at it with noise that the attack never saw."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.noise import Mixed, Rng
from ..core.threat import Linf, Threat
from ..defence import Defence

SLACK = 1e-6  # for rounding, and a hundred-thousandth of eps where a norm is a sum over pixels


def slack(threat: Threat) -> float:
    """By how much a distance may exceed eps and still be rounding."""
    return SLACK if isinstance(threat, Linf) else SLACK + 1e-5 * threat.eps


class Verified(NamedTuple):
    """Images inside the threat, their distance [b], the same once rounded to 8 bits [b], and which were mended."""

    x: Tensor
    distance: Tensor
    distance_8bit: Tensor
    repaired: Tensor


def verify(x: Tensor, x0: Tensor, threat: Threat | None) -> Verified:
    """Puts candidates that are not finite back to the clean image, and those outside the threat or [0, 1] into it."""
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    x = torch.where(finite.view(-1, 1, 1, 1), x, x0)
    repaired = ~finite
    if threat is not None:
        outside = (
            (threat.distance(x, x0) > threat.eps + slack(threat))
            | (x < 0).flatten(1).any(1)
            | (x > 1).flatten(1).any(1)
        )
        x = torch.where(outside.view(-1, 1, 1, 1), threat.project(x, x0), x)
        repaired = repaired | outside
    measure = threat.distance if threat is not None else lambda a, b: (a - b).flatten(1).abs().amax(dim=1)
    return Verified(x, measure(x, x0), measure((x * 255).round() / 255, x0), repaired)


@torch.no_grad()
def judge(
    defence: Defence, x: Tensor, rng: Rng, draws: int, noise: Callable[[Rng], Rng | Mixed] = lambda r: r
) -> Tensor:
    """Logits [b, draws, classes] of ``draws`` purifications of every image, before any vote.

    Draws come in whole decisions; ``noise`` says what noise a decision meets, where some of it is known.
    """
    each = max(1, draws // defence.vote.draws) * defence.vote.draws
    out = defence.draws(x.repeat_interleave(each, dim=0), rows(defence, rng, draws, noise))
    return out.view(len(x), each, -1)


def rows(defence: Defence, rng: Rng, draws: int, noise: Callable[[Rng], Rng | Mixed] = lambda r: r) -> Rng | Mixed:
    """The noise of the judge's draws, an image's one after the other."""
    return noise(rng.repeat(max(1, draws // defence.vote.draws))).repeat(defence.vote.draws)
