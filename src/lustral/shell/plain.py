"""YAML that costs what it looks like: no alias multiplies it without bound, and nothing is nested without end."""

from collections.abc import Callable
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from ..core.errors import UserError

LONGEST, LARGEST, DEEPEST, DIGITS = 2**20, 100_000, 32, 300
"""Characters of a configuration, its values with aliases written out, levels of lists, and digits of a number."""


def check(text: str) -> None:
    """Refuses a text that would be more than ``LARGEST`` values as YAML; what is no YAML is left to its reader."""
    if len(text) > LONGEST:
        raise UserError(f"A configuration has at most {LONGEST:,} characters; this one has {len(text):,}.")
    if len(text) <= DIGITS and not any(mark in text for mark in "&[{\n"):
        return
    try:
        _count(yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), text)
    except yaml.YAMLError:
        return


def _count(events: Any, text: str) -> None:
    named: dict[str, int] = {}
    open_ones: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_ones.append((event.anchor, 1))
            if len(open_ones) > DEEPEST:
                raise UserError(f"A configuration is nested more than {DEEPEST} levels deep; write it flatter.")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_ones.pop()
            named |= {anchor: size} if anchor else {}
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            named |= {event.anchor: size} if event.anchor else {}
            if event.implicit[0] and len(event.value) > DIGITS and not event.value.strip("+-.:_0123456789abcdefox"):
                raise UserError(f"A configuration has a number of more than {DIGITS} digits; write a smaller one.")
            if event.value != text:  # which a parser may take for YAML again
                check(event.value)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in open_ones):
                raise UserError(f"A configuration holds itself in *{event.anchor}; write out what is meant.")
            size = named.get(event.anchor, 0)
        anchor, before = open_ones[-1]
        open_ones[-1] = anchor, before + size
        if before + size > LARGEST:
            raise UserError(f"A configuration has more than {LARGEST:,} values; use fewer aliases.")


def _load(text: str) -> Any:
    check(text)
    return READ(text)


READ: Callable[[str], Any] = get_loader("yaml")
set_loader("yaml", _load, exceptions=(yaml.YAMLError,))
