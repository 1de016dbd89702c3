"""A run's plots as files, for papers and slides."""

from pathlib import Path

from ..core.errors import UserError, unknown
from . import folder
from .files import replacing
from .looks import Look, looks_of
from .plots import Drawing, Ink, drawings, figure_of, style

INK = Ink(
    muted="#3f3e3a",
    grid="#e0ddd5",
    paper="#ffffff",
    hues=("#6b6963", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),  # as the page has them
)
FORMATS = (".pdf", ".png", ".svg")


def write(run: Path, out: Path, name: str) -> Path:
    """Draws a plot of a finished run into a file, with a legend; returns its path."""
    import matplotlib

    if out.suffix.lower() not in FORMATS:
        raise UserError(f"A plot is written as {', '.join(FORMATS)}; name the output so, for example {out.stem}.pdf.")
    found, pictures = folder.read(run)
    looks = looks_of(found, pictures)
    known = {drawing.name: drawing for drawing in drawings(found, looks, pictures)}
    if not known:
        raise UserError(f"{run} has no numbers to draw.")
    if name not in known:
        raise unknown("plot of this run", name, known)
    undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(out.suffix.lower())
    with matplotlib.rc_context(style(INK)), replacing(out) as scratch:
        figure = figure_of(known[name], INK)
        figure.axes[0].set_ylabel("rms distance to the clean image" if name == "trajectory" else "accuracy")
        _legend(figure, known[name], {row["system"] for row in found["rows"] if row.get("held")})
        figure.savefig(scratch, format=out.suffix[1:].lower(), dpi=200, metadata=undated)
    return out


def _legend(figure, drawing: Drawing, held: set[str]) -> None:
    from matplotlib.lines import Line2D

    looks: list[Look] = list(dict.fromkeys(line.look for line in drawing.lines))
    labels = [f"{look.label} (red finding)" if look.name in held else look.label for look in looks]
    marks = [Line2D([], [], color=INK.hues[look.hue], marker=look.marker) for look in looks]
    columns = max(1, int(9 * drawing.width) // (5 + max(map(len, labels))))
    figure.legend(marks, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize="small")
