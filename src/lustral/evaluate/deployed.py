"""What is measured of the deployed callable itself before any attack, in its own precision: no copy, no float64."""

import torch
from torch import Tensor

from ..attacks.gradients import exact
from ..attacks.losses import margin
from ..core.noise import Key
from ..core.threat import Threat
from .judge import judge
from .protocol import Data, System
from .suites import widest
from .witness import Witness, paths

WAYS = 2  # images from which the way to another one is followed
ASKED = 8  # draws of each image at either place
SHUFFLES = 4000


def differences(system: System, data: Data, threat: Threat, key: Key) -> dict[str, list[tuple[float, float, float]]]:
    """Changes (predicted, measured, error) at images, inside the threat and far beyond it, as ``Probe`` has them.

    ``deployed`` are those along gradients, ``across`` those along random signs.
    """
    rng = key.rng(data.ids).fold("differences")
    starts = [data.x, threat.start(data.x, rng.fold("inside")), widest(threat).start(data.x, rng.fold("beyond"))]
    found = []
    for k, x in enumerate(starts):
        exact()(witness := Witness(system.defence, threat), x, data.y, margin, rng.fold(k))
        found += witness.probes()
    kinds = {"deployed": "step", "across": "across"}
    return {name: [probe[3:] for probe in found if probe.kind == kind] for name, kind in kinds.items()}


def ways(system: System, data: Data, key: Key) -> list[tuple[float, float, float]]:
    """(predicted, measured, error) of the margin's change from an image to another one, or to its negative."""
    some = data[:WAYS]
    far = data.x.roll(1, 0)[:WAYS] if len(data.ids) > 1 else 1 - some.x
    return [probe[3:] for probe in paths(system.defence, some.x, far, some.y, key.fold("ways").rng(some.ids))]


def places(system: System, data: Data, key: Key) -> float:
    """How often chance tells margins on an attack's noise from those on a judge's as well as their place does.

    A permutation test at clean images, ASKED draws of each at either place; the statistic is the sum over images of the
    standardised distance between the means.
    """
    place, n = key.fold(system.name, "exact"), ASKED
    defence, y = system.defence, data.y.repeat_interleave(n)
    with torch.enable_grad():
        x = data.x.repeat_interleave(n, dim=0).requires_grad_()
        attacked = defence.logits(x, place.fold("attack", "look", 0).rng(data.ids).repeat(n)).detach()
    votes = defence.vote
    draws = judge(defence, data.x, place.fold("judge").rng(data.ids), n * votes.draws)
    judged = votes.merge(draws.view(len(y), votes.draws, -1))
    seen = torch.cat([margin(logits, y).view(len(data.x), n) for logits in (attacked, judged)], dim=1).double()
    order = key.fold("shuffles").rng(SHUFFLES).uniform(torch.empty(SHUFFLES, 2 * n)).argsort(dim=1)
    there = _distance(seen, torch.arange(2 * n)[None])
    return float((1 + (_distance(seen, order) >= there - 1e-12).sum()) / (1 + SHUFFLES))


def _distance(seen: Tensor, order: Tensor) -> Tensor:
    """The statistic [k] of margins [images, 2n] for orders [k, 2n], whose first half is taken for the attack's."""
    halves = seen[:, order].unflatten(-1, (2, -1)).mean(dim=-1)  # [images, k, 2]
    spread = seen.std(dim=1).clamp_min(1e-12)[:, None]
    return ((halves[..., 0] - halves[..., 1]).abs() / spread).sum(dim=0)
