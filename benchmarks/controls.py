"""Which cheats each suite catches, and which honest systems it leaves alone, for docs/suites.md.

python -m benchmarks.controls [cheats|honest] [smoke|quick|standard]

Everything takes hours on two cores, most of it the honest systems in standard. A part that is asked for takes the place
of the same part of the stored tables, and the other columns stay.
"""

import sys

from benchmarks import store
from benchmarks.tables import percent
from lustral.shell import controls
from lustral.shell.cheating import CHEATS, MORE_CHEATS
from lustral.shell.controls import Caught
from lustral.shell.honest import HONEST, MORE_HONEST
from lustral.shell.options import Resources

IMAGES = {"smoke": 8, "quick": 24, "standard": 24}
KINDS = {"cheats": {**CHEATS, **MORE_CHEATS}, "honest": {**HONEST, **MORE_HONEST}}


def with_column(known: store.Table | None, suite: str, found: list[Caught]) -> store.Table:
    """A table with a suite's column measured anew: what catches each control, and the accuracy that it would show."""
    columns = {} if known is None else {name: dict(_column(known, name)) for name in known.head[1:]}
    columns[f"{suite}, {IMAGES[suite]} images"] = {one.name: cell(one) for one in found}
    heads = [name for name in (f"{suite}, {n} images" for suite, n in IMAGES.items()) if name in columns]
    rows = [[one.name, *(columns[name].get(one.name, "not measured") for name in heads)] for one in found]
    return store.Table(["control", *heads], rows)


def _column(table: store.Table, name: str) -> list[tuple[str, str]]:
    at = table.head.index(name)
    return [(row[0], row[at]) for row in table.rows]


def cell(one: Caught) -> str:
    """What a suite says of a control."""
    by = ", ".join(f"`{name}`" for name in one.red) or "no red finding"
    if not one.expected:
        said = "sound" if one.holds else "**false alarm**"
    elif one.unseen and one.holds:
        said = "**not seen**: here a page without red is no evidence"
    else:
        said = "caught" if one.holds else "**otherwise than expected**" if one.unseen else "**missed**"
    return f"{said} ({by}); worst {percent(one.worst)}"


def main(kinds: list[str], suites: list[str]) -> bool:
    """Measures parts of the tables; says whether all is as it must be."""
    good = True
    for suite in suites:
        for kind in kinds:
            found = controls.main(suite, IMAGES[suite], Resources(), KINDS[kind])
            known = store.load("suites").get(kind)
            store.keep("suites", {kind: [with_column(known[0] if known else None, suite, found)]})
            good &= all(one.holds for one in found)
    return good


if __name__ == "__main__":
    asked = sys.argv[1:]
    kinds, suites = ([name for name in known if name in asked] or list(known) for known in (KINDS, IMAGES))
    sys.exit(not main(kinds, suites))
