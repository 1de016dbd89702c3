"""Which images of a set are for what: train = fit + validation, and test. The rule is fixed, and nothing leaks.

- ``train`` and ``test`` are the set's own. Ids are positions in the official order, the training images first.
- ``validation`` is a part of ``train``, and ``fit`` is what is left. In published sets it is the last tenth of the
  training images in the official order (of the digits: the last 200); elsewhere, where images may be sorted by class,
  the tenth whose ids, as decimal text, have the smallest SHA-256. A training image with the very pixels of a validation
  image goes with it, so no image is on both sides.
- A set that brings a validation split of its own keeps it; ``fit`` is then ``train`` without copies of its images.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.errors import UserError
from ...evaluate.protocol import Data

SPLITS = ("train", "fit", "validation", "test")
TENTH = 10


def by_hash(number: int) -> bytes:
    """The SHA-256 of an id as decimal text: a random order that is the same everywhere."""
    return hashlib.sha256(str(number).encode()).digest()


@dataclass(frozen=True)
class Labelled:
    """Labels and, once they are asked for, images: uint8, or floats in [0, 1], [n, c, h, w]."""

    y: Tensor
    pixels: Callable[[], Tensor]
    ids: Tensor | None = None

    def data(self) -> Data:
        return Data(self.ids, self.pixels(), self.y)


@dataclass(frozen=True)
class Parts:
    """A set by its own splits, and how many of its last training images validate (None: a tenth, by hash).

    ``classes`` are the names of its labels, where they have some.
    """

    own: dict[str, Labelled]
    last: int | None = None
    classes: tuple[str, ...] = ()

    @staticmethod
    def in_order(own: dict[str, Labelled], by_order: bool = True) -> "Parts":
        """With ids that count through train, test and validation; ``by_order``: the last tenth validates."""
        numbered, first = {}, 0
        for split in ("train", "test", "validation"):
            if split in own:
                n = len(own[split].y)
                numbered[split] = replace(own[split], ids=torch.arange(first, first + n))
                first += n
        tenth = max(1, len(own["train"].y) // TENTH) if by_order and "train" in own else None
        return Parts(numbered, tenth)

    @staticmethod
    def whole(data: Data) -> "Parts":
        """A set without splits: all of it trains, and all of it tests."""
        part = Labelled(data.y, lambda: data.x, data.ids)
        return Parts({"train": part, "test": part})

    def pick(self, split: str, name: str) -> Data:
        """The images of one split."""
        own = self.own.get("train" if split == "fit" else split)
        if own is not None and split != "fit":
            return own.data()
        if own is None and (split != "validation" or "train" not in self.own):
            raise UserError(f"{name} has no {split} images; it has {', '.join(self.own) or 'none at all'}.")
        train = self.own["train"].data()
        if "validation" in self.own:
            held = _copies(train.x, self.own["validation"].pixels())
        else:
            held = self._chosen(train.ids)
            held |= _copies(train.x, train.x[held])
        if held.all():
            raise UserError(f"{name} has too few different training images to hold some out; add images.")
        return train[held if split == "validation" else ~held]

    def _chosen(self, ids: Tensor) -> Tensor:
        chosen = torch.zeros(len(ids), dtype=torch.bool)
        if self.last is not None:
            chosen[len(ids) - self.last :] = True
        else:
            order = sorted(range(len(ids)), key=lambda row: by_hash(int(ids[row])))
            chosen[order[: max(1, len(ids) // TENTH)]] = True
        return chosen


def _copies(x: Tensor, of: Tensor) -> Tensor:
    """Which images of x have the very pixels of one of the others."""
    if x.shape[1:] != of.shape[1:]:
        return torch.zeros(len(x), dtype=torch.bool)
    known = {image.tobytes() for image in of.numpy()}
    return torch.tensor([image.tobytes() in known for image in x.numpy()], dtype=torch.bool)
