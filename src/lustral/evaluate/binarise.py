"""The binarisation test (Zimmermann et al., NeurIPS 2022): can the attack find an example that is known to be there?

The classifier's last layer is replaced, image by image, by a linear head of two classes that tells one chosen point on
the boundary of the threat from random ones. That point is an adversarial example by construction, so a sound attack
finds one. For a defence with noise a decision is the mean over VOTES draws, since no head tells single draws apart, and
an image counts where its head tells both kinds apart on fresh decisions.
"""

import threading
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..attacks.search import Attack
from ..core import outputs
from ..core.adjoint import Adjoint, Checkpointed
from ..core.inference import differentiable
from ..core.lanes import Lanes, gather, in_parts
from ..core.networks import modules_in
from ..core.noise import Key, Mixed, Rng
from ..core.threat import Threat
from ..defence import Defence
from .protocol import Data, System

DECISIONS, VOTES, SEPARATED = 32, 16, 0.95
NEAR = 0.75  # where the head's threshold lies between the random points and the chosen one


class Binarised(NamedTuple):
    """Images in the test, and the shares of them in which the attack, and random signs at as many looks, succeed.

    None where no image is fit for the test.
    """

    images: int
    attack: float | None
    chance: float | None


class RoutedError(Exception):
    """A layer that was taken for a classifier's last one does not see every row, or not every time."""


class Features:
    """What the linear layer that a classifier calls last takes in, [b, features]; its logits where it calls none.

    Logits too where ``routed``, because the last layer is another one for other rows (a mixture of experts).
    """

    def __init__(self, classifier, routed: bool = False):
        self.classifier, self.last = classifier, None
        parts = [] if routed else modules_in(classifier)
        self.layers = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]

    def __call__(self, x: Tensor) -> Tensor:
        seen: list[tuple[nn.Module, Tensor]] = []
        here = threading.get_ident()  # other systems may share the layers, in threads of their own

        def note(layer: nn.Module, inputs: tuple) -> None:
            if threading.get_ident() == here:
                seen.append((layer, inputs[0]))

        hooks = [layer.register_forward_pre_hook(note) for layer in self.layers]
        try:
            logits = outputs.logits(self.classifier(x), len(x))
        finally:
            for hook in hooks:
                hook.remove()
        last = seen[-1][0] if seen else None
        self.last = self.last or last
        if self.last is None:
            return logits
        found = [inputs for layer, inputs in seen if layer is last]
        if last is not self.last or sum(map(len, found)) < len(x):
            raise RoutedError
        return torch.cat(found)[: len(x)].flatten(1).to(x)  # the layer may compute elsewhere, and in bfloat16


class TwoClasses:
    """The victim of the test: a head [features] and an offset for every image id."""

    def __init__(self, defence: Defence, votes: int, routed: bool = False):
        self.purifier, self.features = defence.purifier, Features(defence.classifier, routed)
        self.votes, self.lanes = votes, defence.lanes
        self.heads: dict[int, tuple[Tensor, Tensor]] = {}

    def see(self, x: Tensor, rng: Rng | Mixed, adjoint: Adjoint | None = None) -> Tensor:
        """Mean features over the draws of one decision per row."""
        x, rows = x.repeat_interleave(self.votes, dim=0), rng.repeat(self.votes)
        clean = x if self.purifier is None else Lanes(self.lanes, adjoint or Checkpointed())(self.purifier, x, rows)
        seen = gather(in_parts(lambda part: self.features(clean[part]), torch.arange(len(clean)), self.lanes))
        return seen.view(len(rng), self.votes, -1).mean(dim=1)

    def logits(self, x: Tensor, rng: Rng | Mixed, adjoint: Adjoint | None = None) -> Tensor:
        seen = self.see(x, rng.fold("purify"), adjoint)
        heads, offsets = zip(*(self.heads[image] for image in rng.ids.tolist()), strict=True)
        value = (seen * torch.stack(heads)).sum(dim=1) + torch.stack(offsets)
        return torch.stack([-value / 2, value / 2], dim=1)


@differentiable
def binarise(system: System, data: Data, threat: Threat, attack: Attack, null: Attack, key: Key) -> Binarised:
    """Runs the test with an attack on single decisions; ``null`` is its null control."""
    votes, given = VOTES if system.random else 1, (data, threat, attack, null, key)
    try:
        return _binarised(TwoClasses(system.defence, votes), *given)
    except RoutedError:
        return _binarised(TwoClasses(system.defence, votes, routed=True), *given)


def _binarised(victim: TwoClasses, data: Data, threat: Threat, attack: Attack, null: Attack, key: Key) -> Binarised:
    usable = [row for row in range(len(data.ids)) if _fit(victim, data, row, threat, key.fold("fit"))]
    if not usable:
        return Binarised(0, None, None)
    part = data[torch.tensor(usable)]
    zeros, rng = torch.zeros_like(part.y), key.rng(part.ids)
    rates = []
    for name, search in (("attack", attack), ("null", null)):
        x = threat.project(search.run(victim, part.x, zeros, rng.fold(name)).x, part.x)
        rows = rng.fold("judge", name).repeat(DECISIONS)
        with torch.no_grad():
            fooled = victim.logits(x.repeat_interleave(DECISIONS, dim=0), rows).argmax(dim=1).view(len(x), DECISIONS)
        rates.append(float((fooled.double().mean(dim=1) > 0.5).double().mean()))
    return Binarised(len(usable), *rates)


@torch.no_grad()
def _fit(victim: TwoClasses, data: Data, row: int, threat: Threat, key: Key) -> bool:
    """Fits the head of one image by linear discriminants, and says whether it tells both kinds apart on fresh draws."""
    image, x0 = int(data.ids[row]), data.x[row : row + 1]
    others = data.x[data.y != data.y[row]]
    if not len(others):
        return False
    goal = others[row % len(others)][None]
    edge = threat.project(threat.ascend(x0, goal - x0, threat.eps), x0)
    rng = key.rng(torch.tensor([image])).repeat(DECISIONS)
    many = x0.expand(DECISIONS, -1, -1, -1)

    def sample(name: str) -> tuple[Tensor, Tensor]:
        signs = rng.fold(name, "within").sign(many)
        within = threat.project(threat.ascend(many, signs, threat.eps), many)
        inner = victim.see(within, rng.fold(name, "inner"))
        return inner.double(), victim.see(edge.expand_as(many), rng.fold(name, "edge")).double()

    inner, outer = sample("fit")
    centred = torch.cat([inner - inner.mean(dim=0), outer - outer.mean(dim=0)])
    spread = centred.T @ centred / len(centred)
    ridge = 1e-2 * spread.diagonal().mean().clamp_min(1e-12) * torch.eye(len(spread), dtype=spread.dtype)
    head = torch.linalg.solve(spread + ridge, outer.mean(dim=0) - inner.mean(dim=0))
    low, high = torch.quantile(inner @ head, 0.98), torch.quantile(outer @ head, 0.02)
    scale = (high - low).abs().clamp_min(1e-12)
    head, offset = head / scale, -(low + NEAR * (high - low)) / scale
    victim.heads[image] = head.to(x0), offset.to(x0)
    fresh = sample("check")
    right = ((fresh[0] @ head + offset < 0), (fresh[1] @ head + offset > 0))
    return all(float(kind.double().mean()) >= SEPARATED for kind in right)
