"""Which cheats and broken attacks each suite catches, for docs/suites.md: ``python -m benchmarks.controls``.

A quarter of an hour on two cores, most of it the standard suite.
"""

import sys

from benchmarks import store
from benchmarks.tables import percent
from lustral.shell import controls
from lustral.shell.controls import Caught
from lustral.shell.options import Resources

IMAGES = {"smoke": 8, "quick": 24, "standard": 24}


def table(found: dict[str, list[Caught]]) -> list[store.Part]:
    """A row for every control: what catches it in each suite, and the accuracy that it would show."""
    head = ["control", *(f"{suite}, {IMAGES[suite]} images" for suite in found)]
    rows = [[same[0].name, *map(_cell, same)] for same in zip(*found.values(), strict=True)]
    return [store.Table(head, rows)]


def _cell(one: Caught) -> str:
    said = "sound" if not one.expected else "caught"
    by = ", ".join(f"`{name}`" for name in one.red) or "no red finding"
    return f"{said if one.holds else '**missed**'} ({by}); worst {percent(one.worst)}"


if __name__ == "__main__":
    found = {suite: controls.main(suite, images, Resources()) for suite, images in IMAGES.items()}
    store.keep("suites", {"controls": table(found)})
    sys.exit(not all(one.holds for same in found.values() for one in same))
