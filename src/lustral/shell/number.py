"""Numbers as people write them: 8/255."""

from typing import Any

from jsonargparse.typing import register_type


class Number(float):
    """In signatures: a number that may be written as a fraction. Its value is a plain float."""


def number(said: Any) -> float:
    """The number that a text (0.1, 8/255) or a number means."""
    if isinstance(said, bool):
        raise ValueError("a number or a fraction such as 8/255 is needed here")
    above, slash, below = said.partition("/") if isinstance(said, str) else (said, "", "")
    try:
        return float(above) / float(below if slash else 1)
    except (ValueError, TypeError, ZeroDivisionError) as e:
        raise ValueError("a number or a fraction such as 8/255 is needed here") from e


register_type(Number, float, number, type_check=lambda value, _: isinstance(value, float))
