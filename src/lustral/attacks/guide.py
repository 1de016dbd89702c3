"""Classifiers inside a purifier as victims: a verdict that guides has no gradient, but it can be fooled."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from ..core.purifier import Purifier
from ..defence import Defence
from ..purifiers.guided import Robust


def guides(purifier: Purifier | None) -> tuple[Defence, ...]:
    """The classifiers that guide a purifier (AGDM) or what it is made of, each once, as undefended victims."""
    found = {id(guide.classifier): guide for guide in _inside(purifier)}
    return tuple(Defence(guide.classify) for guide in found.values())


def _inside(part: Any) -> Iterator[Robust]:
    """The guidances by a classifier among a purifier's fields, and theirs."""
    if isinstance(part, Robust):
        yield part
    elif isinstance(part, tuple | list):
        for one in part:
            yield from _inside(one)
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from _inside(getattr(part, field.name))
