"""What JSON must look like before anybody relies on it, as a sketch of it.

A sketch is a leaf of ``LEAVES``, ``None``, a tuple of sketches of which one fits, ``[sketch]`` for a list, or a dict of
sketches: a name that ends with ``?`` may be missing, ``*`` is any other name and ``#`` one that is a number.
"""

import re
from typing import Any

LARGEST = 10**15
COUNTED = 1_000_000
"""What is counted one by one, like draws."""


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_number, value))


LEAVES = {
    "a number": _number,
    "a whole number": lambda value: type(value) is int and abs(value) <= LARGEST,
    "a count": lambda value: type(value) is int and 0 <= value <= COUNTED,
    "a text": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "two numbers": lambda value: _numbers(value, 2),
    "three numbers": lambda value: _numbers(value, 3),
    "anything": lambda value: True,
}


def wrong(value: Any, sketch: Any, where: str = "it") -> str:
    """Where a value first is not like its sketch, and what must be there; nothing where it is."""
    if isinstance(sketch, tuple):
        found = [wrong(value, one, where) for one in sketch]
        return "" if "" in found else found[0]
    if sketch is None:
        return "" if value is None else f"{where} must be null"
    if isinstance(sketch, str):
        return "" if LEAVES[sketch](value) else f"{where} must be {sketch}"
    if isinstance(sketch, list):
        if not isinstance(value, list):
            return f"{where} must be a list"
        return next((said for part in value if (said := wrong(part, sketch[0], f"a part of {where}"))), "")
    if not isinstance(value, dict):
        return f"{where} must be an object"
    lacking = [name for name in sketch if name[-1] not in "?*#" and name not in value]
    if lacking:
        return f"{where} lacks {lacking[0]}"
    return next((said for name, part in value.items() if (said := _wrong_part(name, part, sketch, where))), "")


def _wrong_part(name: str, part: Any, sketch: dict[str, Any], where: str) -> str:
    known = sketch.get(name, sketch.get(f"{name}?", sketch.get("*", sketch.get("#"))))
    if "#" in sketch and not re.fullmatch("[0-9]{1,9}", name):
        return f"{where} must have numbers for names"
    return wrong(part, known, f"{name} of {where}") if known is not None else ""
