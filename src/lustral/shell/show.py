"""What people read in the terminal."""

import json
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from . import build, weights
from .options import Method, Solver, VoteName

# Wide enough for the table where the output is a pipe or a file.
out = Console() if Console().is_terminal else Console(width=120)


def table(found: dict) -> None:
    """The results of a run."""
    threat = found["threat"]
    images = found["data"]["images"]
    title = f"{found['title']}: {threat['norm']} eps = {threat['eps']:g}, {images} images, seed {found['seed']}"
    sheet = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("system", "stage"):
        sheet.add_column(name, no_wrap=True)
    for name in ("accuracy", "95 %", "null", "draws", "EOT", "looks", "seconds", "forward", "backward"):
        sheet.add_column(name, justify="right", no_wrap=True)
    for row in found["rows"]:
        if row["group"] == "main":
            sheet.add_row(*_cells(row))
    out.print(sheet)
    for claim in found["ordering"]:
        values = ", ".join(f"{value:.1%}" for value in claim["values"])
        out.print(
            f"{'holds' if claim['holds'] else 'FAILS'}: {claim['system']}: {claim['claim']} ({values})", highlight=False
        )


def _cells(row: dict) -> list[str]:
    null = "—" if row["null"] is None else f"{row['null']:.1%}"
    counts = str(row["draws"]), str(row["eot"] or "—"), str(row["looks"])
    rows = f"{row['forward']:,}", f"{row['backward']:,}"
    interval = f"{row['low']:.0%}–{row['high']:.0%}"
    return [
        row["system"],
        row["stage"],
        f"{row['accuracy']:.1%}",
        interval,
        null,
        *counts,
        f"{row['seconds']:.1f}",
        *rows,
    ]


def places(folder: Path) -> None:
    """Where a run's results are."""
    for name in ("report.html", "results.json", "ledger.sqlite"):
        done(folder / name)


def done(path: Path) -> None:
    """Where something was written."""
    out.print(f"→ {path}", soft_wrap=True, highlight=False)


def line(text: str) -> None:
    """One sentence."""
    out.print(text, soft_wrap=True, highlight=False)


def card(about: weights.Card) -> None:
    """A card, as JSON."""
    out.print_json(json.dumps(asdict(about)))


def names() -> None:
    """Everything that has a name."""
    for name, path in weights.zoo().items():
        about = weights.card(path)
        facts = ", ".join(f"{key} {value:g}" for key, value in about.measured.items())
        line(f"{about.kind:<11}{name:<14}{about.parameters:,} parameters, {about.data}: {facts}")
    for kind, values in (("method", Method), ("solver", Solver), ("vote", VoteName)):
        line(f"{kind:<11}{', '.join(values.__args__)}")
    line(f"{'stage':<11}{', '.join(build.STAGES)}")
