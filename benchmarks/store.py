"""The stored results that pages are written from: docs/results/data/PAGE.json, one entry a block of a page.

A command that measures calls ``keep``; `python -m benchmarks.pages` then writes the pages.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parents[1] / "docs/results/data"


class Table(NamedTuple):
    """A head and rows of cells, as they are printed."""

    head: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


Part = str | Table
"""A paragraph or a table."""


def text(parts: list[Part]) -> str:
    """Parts as Markdown."""
    return "\n\n".join(str(part) for part in parts)


def command() -> str:
    """The benchmark that runs, as people would type it; folders and files are named FOLDER."""
    module = Path(sys.argv[0]).stem
    return " ".join(["python -m benchmarks." + module, *("FOLDER" if "/" in a else a for a in sys.argv[1:])])


def keep(page: str, entries: dict[str, list[Part]], folder: Path = DATA) -> None:
    """Stores the entries of a page, in place of those of the same names."""
    path = folder / f"{page}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, parts in entries.items():
        known[name] = {"by": command(), "parts": [p._asdict() if isinstance(p, Table) else p for p in parts]}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(_lines(known), encoding="utf-8")


def load(page: str, folder: Path = DATA) -> dict[str, list[Part]]:
    """Every entry of a page."""
    known = json.loads((folder / f"{page}.json").read_text(encoding="utf-8"))
    return {name: [p if isinstance(p, str) else Table(**p) for p in entry["parts"]] for name, entry in known.items()}


def _lines(known: dict) -> str:
    """JSON with a table's row on a line, so that a difference shows what changed."""
    marks: list[str] = []

    def short(value):
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
            marks.append(json.dumps(value, ensure_ascii=False))
            return f"\0{len(marks) - 1}\0"
        if isinstance(value, dict):
            return {name: short(part) for name, part in value.items()}
        return [short(part) for part in value] if isinstance(value, list) else value

    lines = json.dumps(short(known), indent=1, ensure_ascii=False)
    for i, row in enumerate(marks):
        lines = lines.replace(f'"\\u0000{i}\\u0000"', row, 1)
    return lines + "\n"
