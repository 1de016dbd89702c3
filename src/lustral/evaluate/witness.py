"""A witness of what runs: does the gradient that a search follows say how the system changes, where the search is?

Certificates look at a system before any attack. A witness stands between a search and its victim, and at a few looks
takes a few of the search's own images, with the noise, the precision and the callable that it has there: what the
gradient predicts along the search's next step is compared with what the system then does. Noise is addressed, so it
changes nothing: neither the search nor what is counted. Which images are tried, and when, is said by their positions in
the data and by how often each was looked at, never by the batch that they are in.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..attacks.gradients import Victim, exact
from ..attacks.losses import margin
from ..core.adjoint import Adjoint, Checkpointed, Direct
from ..core.networks import aside
from ..core.noise import Key, Mixed, Rng
from ..core.threat import L1, L2, Linf, Threat
from ..defence import Defence
from .judge import judge

OFTEN = 1.5  # over its number is the probability that a look is watched
FIRST = 8  # images, of 64 in the data, whose first look is tried
EVERY = 4  # of an image's rows one in so many is tried on the average, the first of those that it has in a look
LENGTHS = (1 / 16, 1 / 64)  # of eps: steps that are tried
TWINS = 4  # rows in which the judge is asked a search's question
LEAD = 16  # images of the data, of which one is asked about the judge, and is followed along a path
POINTS = 16  # of a path, one in each part of it
ROWS = 8  # a search's gradients of an image for its path; more for the second, third and fourth of 64 images


class Probe(NamedTuple):
    """What a gradient predicts and what was measured, at one image.

    ``kind`` is ``step`` (the change along a step of the search), ``across`` (that along random signs, beside its usual
    size; ``error`` is how far slopes of two lengths differ), ``path`` (that of the margin from the clean image to the
    candidate; ``error`` is the standard error of the prediction), ``asked`` (the difference between the logits that
    search and judge get for one question, beside their size) or ``later`` (that between two answers of the judge,
    before and after the search). ``look`` counts the looks along a gradient that had this image.
    """

    image: int
    kind: str
    look: int
    predicted: float
    measured: float
    error: float = 0.0


class Asked(NamedTuple):
    """A question of a search to try: images [n], whose looks these are, their noise, what the backward pass brought."""

    looks: Sequence[int]
    x: Tensor
    rng: Rng | Mixed
    found: dict[str, Tensor]

    def keep(self, name: str, grad: Tensor | None, rows: Tensor) -> None:
        """Keeps the rows of a gradient, where there is one."""
        if grad is not None:
            self.found[name] = grad[rows]


class Changes(NamedTuple):
    """Changes along a direction at steps of several lengths, [n, lengths] each.

    ``size`` is the prediction's usual size: its standard deviation over the signs of the pixels' moves.
    """

    predicted: Tensor
    measured: Tensor
    size: Tensor


class Witness:
    """A defence as a search sees it, watched at some looks along a gradient said to be exact.

    An image's first look is watched, later ones more and more seldom, by a throw that only the run's key knows
    beforehand. ``places`` are the positions of images, by id, in the data; without, the order in which they come.
    """

    def __init__(self, defence: Defence, threat: Threat | None, places: Mapping[int, int] | None = None):
        self.defence, self.label = defence, defence.label
        self.threat = threat if isinstance(threat, Linf | L2 | L1) else Linf(0.1)
        self._places = dict(places or {})
        self._looks: Counter[int] = Counter()
        self._rows: Counter[int] = Counter()
        self._open: list[Asked] = []
        self._probes: list[Probe] = []

    def logits(self, x: Tensor, rng: Rng | Mixed, adjoint: Adjoint | None = None) -> Tensor:
        self._settle()
        if not (torch.is_grad_enabled() and x.requires_grad and exactly(adjoint or self.defence.adjoint)):
            return self.defence.logits(x, rng, adjoint)
        rows, looks = self._tried(rng)
        if not looks:
            return self.defence.logits(x, rng, adjoint)
        rows = rows.to(x.device)
        asked = Asked(looks, x.detach()[rows], rng[rows], {})
        x = x.view_as(x)
        x.register_hook(lambda grad: asked.keep("grad", grad, rows))
        out = self.defence.logits(x, rng, adjoint)
        asked.found["logits"] = out.detach()[rows]
        if out.requires_grad:
            out.register_hook(lambda grad: asked.keep("weights", grad, rows))
        self._open.append(asked)
        return out

    def _tried(self, rng: Rng | Mixed) -> tuple[Tensor, list[int]]:
        """Counts a look, and says of which images the first row is tried, and which look each has."""
        ids = rng.ids.tolist()
        draws, first = Counter(ids), dict(zip(reversed(ids), reversed(range(len(ids))), strict=True))
        self._looks.update(draws.keys())
        self._rows.update(draws)
        seen = {look: watched(look, rng) for look in {self._looks[image] for image in draws}}
        found = []
        for image in draws:
            look, place = self._looks[image], self._places.setdefault(image, len(self._places))
            if seen[look] and tried(place, look, draws[image]):
                found.append((first[image], look))
        return torch.tensor([row for row, _ in found], dtype=torch.long), [look for _, look in found]

    def routes(self, ids: Tensor) -> Tensor:
        """The rows of images whose paths to candidates are worth following after as many gradients."""
        return _chosen(ids, lambda image: followed(self._places[image], self._rows[image]))

    def probes(self) -> list[Probe]:
        """All that was measured."""
        self._settle()
        return self._probes

    def _settle(self) -> None:
        """Measures what the backward passes since the last call have left."""
        todo, self._open = self._open, []
        for asked in todo:
            if "weights" in asked.found:
                with aside():
                    along, across = self._changes(asked)
                    self._probes += _steps(asked, along) + _across(asked, across)
                    self._probes += self._twins(asked)

    def _changes(self, asked: Asked) -> tuple[Changes, Changes]:
        """Σ weights·(logits(x⁺) − logits(x⁻)) against ⟨gradient, x⁺ − x⁻⟩: along the search's step, and random signs.

        All in one batch. Where the gradient leads nowhere nothing may change, so other signs take its place.
        """
        weights, x = asked.found["weights"], asked.x
        grad = asked.found.get("grad", torch.zeros_like(x))
        still = (grad == 0).flatten(1).all(dim=1).view(-1, 1, 1, 1)
        along = torch.where(still, Key(0).fold("signs").rng(asked.rng.ids).sign(x), grad)
        across = fresh(asked.rng).fold("across").sign(x)
        ends = torch.stack(
            [
                self.threat.ascend(x, sign * way, length * self.threat.eps).clamp(0, 1)
                for way in (along, across)
                for length in LENGTHS
                for sign in (1, -1)
            ],
            1,
        )
        rng = asked.rng.again(ends.shape[1])
        logits = self.defence.logits(ends.flatten(0, 1), rng).unflatten(0, (len(x), -1))
        moved, changed = (part[:, ::2] - part[:, 1::2] for part in (ends, logits))  # [n, ways × lengths, …]
        each = (moved * grad[:, None]).double().flatten(2)
        found = each.sum(dim=2), (changed * weights[:, None]).double().sum(dim=2), each.norm(dim=2)
        ways = zip(*(part.unflatten(1, (2, -1)).unbind(1) for part in found), strict=True)
        along, across = (Changes(*way) for way in ways)
        return along, across

    def _twins(self, asked: Asked) -> list[Probe]:
        """The judge, asked what the search first asked of some images: one by one, without gradients."""
        votes, found = self.defence.vote, []
        for row, (image, look) in enumerate(zip(asked.rng.ids.tolist(), asked.looks, strict=True)):
            if look == 1 and leads(self._places[image]):
                one = slice(row, row + 1)
                draws = judge(self.defence, asked.x[one], asked.rng[one], TWINS * votes.draws)[0]
                merged = votes.merge(draws.unflatten(0, (TWINS, votes.draws)))[:1]
                found.append(Probe(image, "asked", look, 0.0, apart(merged, asked.found["logits"][one])))
        return found


def _steps(asked: Asked, changes: Changes) -> list[Probe]:
    """What the gradient says of the search's step, at the better of its lengths."""
    both = torch.stack([changes.predicted, changes.measured], dim=-1)
    off = (changes.measured / changes.predicted - 1).abs().nan_to_num(nan=torch.inf)
    best = both[torch.arange(len(both)), off.argmin(dim=1)]
    pairs = zip(asked.rng.ids.tolist(), asked.looks, best.tolist(), strict=True)
    return [Probe(image, "step", look, *pair) for image, look, pair in pairs]


def _across(asked: Asked, changes: Changes) -> list[Probe]:
    """The same of random signs, where a gradient of which a part is hidden predicts little of what happens."""
    there = (changes.size > 0).all(dim=1)
    predicted, measured = changes.predicted / changes.size, changes.measured / changes.size
    off = measured - predicted
    best = off.abs().argmin(dim=1, keepdim=True)
    rough = (off[:, 0] - off[:, 1]).abs()
    found = torch.stack([predicted.gather(1, best)[:, 0], measured.gather(1, best)[:, 0], rough], dim=1)
    threes = zip(asked.rng.ids.tolist(), asked.looks, there.tolist(), found.tolist(), strict=True)
    return [Probe(image, "across", look, *three) for image, look, sized, three in threes if sized]


def watched(look: int, rng: Rng | Mixed) -> bool:
    """Whether a look, counted from 1, is watched."""
    if look == 1:
        return True
    thrown = int(fresh(rng).key.fold("watched", look).philox("throw")[0]) / 2**64
    return thrown < OFTEN / look


def tried(place: int, look: int, draws: int) -> bool:
    """Whether an image at a place in the data, with so many draws in the look, is tried: others at every look."""
    return (look == 1 and place % 64 < FIRST) or (place - look.bit_length()) % EVERY < draws


def leads(place: int) -> bool:
    """Whether the image at a place in the data is one of the few about which the judge is asked."""
    return place % LEAD == 0


def followed(place: int, rows: int) -> bool:
    """Whether the path of the image at a place is followed, after so many of its rows had a gradient."""
    return leads(place) and rows >= ROWS * (1 + place % 64 // LEAD)


def leading(ids: Tensor, places: Mapping[int, int]) -> Tensor:
    """The rows of the images that lead."""
    return _chosen(ids, lambda image: leads(places[image]))


def _chosen(ids: Tensor, which: Callable[[int], bool]) -> Tensor:
    return torch.tensor([row for row, image in enumerate(ids.tolist()) if which(image)], dtype=torch.long)


def fresh(rng: Rng | Mixed) -> Rng:
    """The noise of a search of which no part is known."""
    return rng.fresh if isinstance(rng, Mixed) else rng


def alike(defence: Defence, x: Tensor, judged: Tensor, rng: Rng | Mixed, places: Mapping[int, int]) -> list[Probe]:
    """The judge's first draws [n, classes] of images x, asked again as a search asks: in its batch, for a gradient."""
    with aside(), torch.enable_grad():
        said = defence.draws(x.detach().requires_grad_(), rng).detach()
    rows = _chosen(rng.ids, lambda image: places[image] % 64 < TWINS or leads(places[image])).tolist()
    return [Probe(int(rng.ids[row]), "asked", 0, 0.0, apart(said[row], judged[row])) for row in rows]


def exactly(adjoint: Adjoint) -> bool:
    """Whether an adjoint claims the derivative of what runs."""
    return isinstance(adjoint, Checkpointed | Direct)


def paths(victim: Victim, x0: Tensor, x1: Tensor, y: Tensor, rng: Rng | Mixed) -> list[Probe]:
    """The change of the margin from x0 to x1 on one noise, and the sum of what gradients on the way say of it."""
    n, k = len(x0), POINTS
    with aside():
        at = (torch.arange(k) + Key(0).fold("points").rng(rng.ids).uniform(torch.empty(n, k))) / k
        shares = at.flatten().to(x0).view(-1, 1, 1, 1)
        points = torch.lerp(x0.repeat_interleave(k, dim=0), x1.repeat_interleave(k, dim=0), shares)
        look = exact()(victim, points, y.repeat_interleave(k, dim=0), margin, rng.again(k))
        ends = margin(victim.logits(torch.cat([x0, x1]), rng[torch.arange(n).repeat(2)]), y.repeat(2))
        before, after = ends.double().chunk(2)
    slopes = (look.grad * (x1 - x0).repeat_interleave(k, dim=0)).double().flatten(1).sum(dim=1).view(n, k)
    errors = (slopes[:, ::2] - slopes[:, 1::2]).square().sum(dim=1).sqrt() / k  # mostly by where points fell
    values = torch.stack([slopes.mean(dim=1), after - before, errors], dim=1)
    return [Probe(image, "path", 0, *value) for image, value in zip(rng.ids.tolist(), values.tolist(), strict=True)]


class Later:
    """Questions to the judge that are asked before a search and once more after it: has anything been remembered?"""

    def __init__(self, defence: Defence, x: Tensor, rng: Rng | Mixed):
        """One about each of images x, under ``rng``; there may be none."""
        self.defence, self.x, self.rng = defence, x, rng
        self.first = self._answers()

    def _answers(self) -> Sequence[Tensor]:
        with aside():
            return judge(self.defence, self.x, self.rng, 1) if len(self.x) else ()

    def again(self) -> list[Probe]:
        answers = zip(self.rng.ids.tolist(), self._answers(), self.first, strict=True)
        return [Probe(image, "later", 0, 0.0, apart(now, before)) for image, now, before in answers]


def apart(answer: Tensor, first: Tensor) -> float:
    """The largest difference of logits beside the size of the first; 0 only where they are equal to the bit."""
    same = (answer == first) | (answer.isnan() & first.isnan())
    gap = torch.where(same, 0.0, (answer - first).abs()).max()
    return float(gap / first.abs().nan_to_num().max().clamp_min(1e-12))
