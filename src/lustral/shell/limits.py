"""The largest numbers that options may have: beyond them a slip of the finger would cost days, or all memory."""

import math
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from ..core.errors import UserError

MOST = {
    **{"purification.steps": 10_000, "purification.rounds": 1_000, "over.steps": 10_000, "over.rounds": 1_000},
    **{"search.steps": 100_000, "search.eot": 10_000, "search.restarts": 10_000, "adversary.steps": 10_000},
    **{"draws": 100_000, "images": 10_000_000, "show.images": 1_000, "micro_batch": 65_536, "batch": 65_536},
    **{"recipe.steps": 100_000_000, "accumulate": 100_000, "threads": 1_024, "check_every": 100_000_000},
    **{"width": 2_048, "depth": 256, "levels": 16, "blocks": 256, "patch": 256},
}
"""By an option's name, or that of its group and its own."""
LEAST = {"dt": 1e-5}
GROUPS = ("purification", "classification", "threat", "search", "resources", "network", "noise", "adversary", "recipe")
FINITE = "is a number or a fraction such as 8/255"
COMBINATIONS = 1_000
"""Settings that a grid may have."""


def check(said: Any, path: tuple[str, ...] = ()) -> None:
    """Refuses options, in groups or lists, of which one is too large or no finite number."""
    if isinstance(said, Mapping | Namespace):
        group = vars(said) if isinstance(said, Namespace) else said
        for name, value in group.items():
            check(value, (*path, str(name)))
        if path[-1:] == ("over",):
            _check_grid([values for values in group.values() if values])
    elif len(path) == 1 and path[0] in GROUPS:
        raise UserError(f"{path[0]} is a group of options; say one of them, or leave it out.")
    elif isinstance(said, list | tuple):
        for value in said:
            check(value, path)
    elif isinstance(said, float | int) and path:
        _check_number(said, path)


def _check_number(value: float, path: tuple[str, ...]) -> None:
    option = f"--{'.'.join(path)}"
    most = MOST.get(".".join(path[-2:]), MOST.get(path[-1]))
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{option} {FINITE}, not {value}.")
    if most is not None and value > most:
        raise UserError(f"{option} is at most {most:,}; choose a smaller number.")
    if path[-1] in LEAST and 0 < value < LEAST[path[-1]]:
        raise UserError(f"{option} is at least {LEAST[path[-1]]:g}; choose a larger number.")


def _check_grid(values: list[list]) -> None:
    if math.prod(map(len, values)) > COMBINATIONS:
        raise UserError(f"--over has more than {COMBINATIONS:,} combinations; leave some values out.")
