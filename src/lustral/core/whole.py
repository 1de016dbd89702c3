"""Whole numbers, where half a one would silently be another."""

import operator

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
