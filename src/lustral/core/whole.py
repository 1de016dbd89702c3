"""Whole numbers, where half a one would silently be another, and finite ones."""

import math
import operator
from dataclasses import fields
from numbers import Real
from types import UnionType
from typing import Any, get_args

from .errors import UserError


def whole(value: object, name: str, least: int | None = None) -> int:
    """The value as an int, be it Python's, NumPy's or torch's; anything else, or one below ``least``, is refused."""
    if type(value) is not int:
        try:
            value = operator.index(None if isinstance(value, bool) else value)
        except (TypeError, ValueError, RuntimeError) as e:
            raise UserError(f"{name} must be a whole number, not {value!r}.") from e
    if least is not None and value < least:
        raise UserError(f"{name} must be at least {least}, not {value}.")
    return value


def numbers(thing: Any) -> None:
    """Refuses, in a dataclass, fields for whole numbers that hold others, and numbers that are not finite.

    The types of the fields say which they are, whole numbers of any library become ints; it serves as
    ``__post_init__``.
    """
    for field in fields(thing):
        value = getattr(thing, field.name)
        kinds = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        name = f"{type(thing).__name__}'s {field.name}"
        if value is None and type(None) in kinds:
            continue
        if int in kinds:
            object.__setattr__(thing, field.name, whole(value, name))
        elif float in kinds:
            finite(value, name, alone=set(kinds) <= {float, type(None)})


def finite(value: object, name: str, alone: bool = True) -> None:
    """Refuses a number that is not finite, and where it stands ``alone`` what is no number at all."""
    if not alone and not isinstance(value, Real | str):
        return
    try:
        good = not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, ValueError, RuntimeError):  # a text, or a tensor of several
        good = False
    if not good:
        raise UserError(f"{name} must be a finite number, not {value!r}.")
