"""Where a set meets a classifier: which of its labels each class of the set is, by name where both sides have names."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from ..core import check
from ..core.errors import UserError
from ..evaluate.protocol import Data
from . import weights
from .cards import Card, card, find
from .images.imagefolder import natural
from .images.splits import Labelled, Parts
from .terminal import note

SHOWN = 10


def meet(parts: Parts, data: str, classifiers: Iterable[str | None]) -> Parts:
    """The set with its labels in the numbers of the classifiers of these names (None: not named yet)."""
    return agree(parts, data, [card(find(name)) for name in classifiers if name is not None])


def agree(parts: Parts, data: str, classifiers: Iterable[Card]) -> Parts:
    """The set with its labels in the numbers of these classifiers, and with their names.

    Names count in any case and without punctuation, numbers as numbers. A set without names keeps its labels.
    """
    made = {about.name: (numbers(parts, data, about), about) for about in classifiers}
    if not parts.classes or not made:
        return parts
    (name, (found, about)), *others = made.items()
    for other, (different, _) in others:
        if different != found:
            raise UserError(
                f"{name} and {other} number the classes of {data} differently; evaluate them in runs of their own."
            )
    if found != list(range(len(found))):
        shown = [f"{own} is {number}" for own, number in zip(parts.classes, found, strict=True) if number >= 0]
        more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        note(f"Labels of {data} as {name} numbers them: {', '.join(shown[:SHOWN])}{more}.")
    return replace(renumbered(parts, found), classes=tuple(about.classes) or parts.classes)


def meet_loaded(data: Data, networks: Iterable[object]) -> Data:
    """Images with their labels in the numbers of those networks that were loaded with a card, by name."""
    check.labels(data.y, len(data.ids), len(data.classes) or None)
    known = [weights.CARDS[net] for net in networks if isinstance(net, nn.Module) and net in weights.CARDS]
    if not data.classes or not known:
        return data
    parts = Parts({"test": Labelled(data.y, lambda: data.x, data.ids)}, classes=tuple(data.classes))
    found = agree(parts, "the data", known)
    return data._replace(y=found.own["test"].y, classes=found.classes)


def renumbered(parts: Parts, found: Sequence[int]) -> Parts:
    """The set with each label in its new number."""
    table = torch.tensor(found, dtype=torch.long)
    return replace(parts, own={split: replace(part, y=table[part.y]) for split, part in parts.own.items()})


def numbers(parts: Parts, data: str, about: Card) -> list[int]:
    """A classifier's number for each class of a set, -1 for those that it does not know and that have no images."""
    known, own = about.classes, list(parts.classes)
    count = about.architecture.get("classes")
    if known:
        return by_name(parts, data, known, about.name)
    if own and count is not None and len(own) != count:
        raise UserError(
            f"{about.name} tells {count} classes apart and does not name them, but {data} has {len(own)} "
            f"({_few(own)}); write the names into its card as classes, in the order of its labels."
        )
    # Numbers in names did not always count.
    if own == sorted(own, key=natural) != sorted(own):
        first, other = next(pair for pair in zip(own, sorted(own), strict=True) if pair[0] != pair[1])
        raise UserError(
            f"{about.name} does not name its classes, so nobody knows whether {first} or {other} comes first; write "
            "the names into its card as classes, in the order of its labels."
        )
    return list(range(len(own)))


def by_name(parts: Parts, data: str, known: Sequence[str], who: str) -> list[int]:
    """The same, where the classifier (or another set, ``who``) has the names ``known``."""
    own = list(parts.classes)
    there, asked = _comparable(known), _comparable(own)
    places = {name: i for i, name in enumerate(there)}
    used = set().union(*(part.y.tolist() for part in parts.own.values()))
    lost = [own[i] for i, name in enumerate(asked) if name not in places and i in used]
    if lost:
        raise UserError(
            f"{who} has no class {_few(lost)}, which {data} has; its classes are {_few(known)}: name yours alike, or "
            "choose another classifier."
        )
    return [places.get(name, -1) for name in asked]


def spoken(names: Sequence[str]) -> tuple[str, ...]:
    """The names of labels that say more than the labels do."""
    return () if list(names) == [str(i) for i in range(len(names))] else tuple(names)


def _comparable(names: Sequence[str]) -> list[str]:
    """Names without case and punctuation, and numbers without zeros before them, where they stay different names."""
    plain = [re.sub(r"[\W_]+", "", name.casefold()) or name for name in names]
    plain = [str(int(name)) if name.isdecimal() else name for name in plain]
    return plain if len(set(plain)) == len(plain) else list(names)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
