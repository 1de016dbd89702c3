"""The plots of a run, and for the report the inside of SVG elements in the page's own colours."""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from .looks import SHAPES, STAGES, Look, main_rows, stages_of


class Ink(NamedTuple):
    """The colours of a drawing: words and lines, the grid, what is behind, and one for every hue of a look."""

    muted: str
    grid: str
    paper: str
    hues: tuple[str, ...]


# Matplotlib knows no CSS variables: for the page it draws in these stand-ins, in whose place _svg puts the variables.
PAGE = Ink("#000101", "#000102", "#000103", tuple(f"#0002{i:02x}" for i in range(len(SHAPES))))
VARIABLES = {PAGE.muted: "muted", PAGE.grid: "grid", PAGE.paper: "paper"}
VARIABLES |= {colour: f"s{i}" for i, colour in enumerate(PAGE.hues)}


def style(ink: Ink) -> dict:
    """Matplotlib's settings."""
    words = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    bare = ("axes.spines.top", "axes.spines.right", "axes.spines.left", "ytick.left")
    rc = {"svg.fonttype": "none", "svg.hashsalt": "lustral", "text.parse_math": False, "font.size": 11}
    rc |= dict.fromkeys(words, ink.muted) | dict.fromkeys(bare, False)
    return rc | {
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": ink.grid,
        "grid.linewidth": 0.8,
    }


FEW = 3  # lines whose bands can be told apart


class Line(NamedTuple):
    """One system's part of a plot: what it is measured at, and the row (or number) there."""

    look: Look
    stage: str
    points: list[tuple]


class Drawing(NamedTuple):
    """A plot on paper of any kind: its name, what it shows, how it is drawn on axes, and its width in inches."""

    name: str
    lines: list[Line]
    draw: Callable[[Any, Ink], None]
    width: float = 6


class Plot(NamedTuple):
    """A plot of the page: what is inside its SVG element, that element's viewBox, what it shows, and how much room."""

    name: str
    box: str
    body: Markup
    lines: list[Line]
    wide: bool


def drawings(results: dict, looks: dict[str, Look], pictures: dict[str, np.ndarray]) -> list[Drawing]:
    """Every plot that the results have numbers for."""
    rows, details, main = results.get("rows") or [], results.get("details") or {}, main_rows(results)
    of = {group: [row for row in rows if row.get("group") == group] for group in ("eps", "t_star")}
    found = (
        _stage_plot(main, looks),
        _eps_plot(of["eps"], main, looks, results.get("threat") or {}),
        _cost_plot(details, looks),
        _time_plot(of["t_star"], looks),
        _norm_plot(looks, pictures),
    )
    return [drawing for drawing in found if drawing.lines]


def figure_of(drawing: Drawing, ink: Ink):
    """The drawing as a figure of matplotlib; to be called, and saved, with the settings of ``style``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(drawing.width, 3.75), layout="constrained")
    drawing.draw(figure.add_subplot(), ink)
    return figure


def plots(results: dict, looks: dict[str, Look], pictures: dict[str, np.ndarray]) -> list[Plot]:
    """The drawings for use inside a page: with the page's colours, ids of their own and no fixed size."""
    return [_svg(drawing) for drawing in drawings(results, looks, pictures)]


def _svg(drawing: Drawing) -> Plot:
    import matplotlib

    out, no_metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(style(PAGE)):
        figure_of(drawing, PAGE).savefig(out, format="svg", transparent=True, metadata=no_metadata)
    svg = out.getvalue()
    box = re.search(r'viewBox="([\d. -]+)"', svg)[1]
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{drawing.name}-", body)
    body = re.sub("|".join(VARIABLES), lambda hit: f"var(--{VARIABLES[hit[0]]})", body)
    return Plot(drawing.name, box, Markup(body), drawing.lines, drawing.width > 6)


def _accuracy_axis(axes) -> None:
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 25), ["0", "25", "50", "75", "100 %"])


def _mark(axes, ink: Ink, look: Look, xs: Sequence[float], ys: Sequence[float], hollow: bool = False, **style) -> None:
    colour = ink.hues[look.hue]
    face, edge, width = (ink.paper, colour, 1.2) if hollow else (colour, ink.paper, 0.8)
    style = {
        "color": colour,
        "marker": look.marker,
        "markersize": 7,
        "linewidth": 1.8,
        "zorder": 3,
    } | style
    axes.plot(xs, ys, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=width, **style)


def _line(axes, ink: Ink, line: Line, band: bool = True, **style) -> None:
    """A line of accuracies with a band or, without a line to carry one, with whiskers; clean ones have neither."""
    xs, rows = [x for x, _ in line.points], [row for _, row in line.points]
    low, high = ([100 * row.get(end, row["accuracy"]) for row in rows] for end in ("low", "high"))
    clean = line.stage == "clean"
    if style.get("linestyle") == "none" or (len(xs) == 1 and not clean):
        axes.vlines(xs, low, high, color=ink.hues[line.look.hue], linewidth=1.6, alpha=0.75)
    elif band and not clean:
        axes.fill_between(xs, low, high, color=ink.hues[line.look.hue], alpha=0.14, linewidth=0)
    style = {"linestyle": (0, (4, 2)), "linewidth": 1.3} | style if clean else style
    _mark(axes, ink, line.look, xs, [100 * row["accuracy"] for row in rows], clean, **style)


def _stage_plot(main: dict, looks: dict[str, Look]) -> Drawing:
    stages = stages_of(main)
    rows = {look: [(s, main[name, s]) for s in stages if (name, s) in main] for name, look in looks.items()}
    lines = [Line(look, "", points) for look, points in rows.items() if points]

    def draw(axes, ink: Ink) -> None:
        _accuracy_axis(axes)
        axes.set_xticks(range(len(stages)), [STAGES.get(s, s).replace(" ", "\n") for s in stages])
        axes.set_xlim(-0.5, len(stages) - 0.5)
        axes.tick_params(axis="x", length=0)
        for i, line in enumerate(lines):
            shift = 0.6 * ((i + 0.5) / len(lines) - 0.5)
            shifted = [(stages.index(stage) + shift, row) for stage, row in line.points]
            _line(axes, ink, line._replace(points=shifted), linestyle="none")

    return Drawing("stages", lines, draw, 6 if len(stages) * len(lines) <= 24 else 12)


def _eps_plot(rows: list[dict], main: dict, looks: dict[str, Look], threat: dict) -> Drawing:
    lines = []
    for look in looks.values():
        own = {row["x"]: row for row in rows if row["system"] == look.name}
        clean, exact = main.get((look.name, "clean")), main.get((look.name, "exact"))
        ends = {0.0: clean} if clean else {}
        if exact and exact.get("eps") is not None:
            ends[exact["eps"]] = exact
        if own:
            lines.append(Line(look, "exact", sorted((own | ends).items(), key=lambda point: point[0])))

    def draw(axes, ink: Ink) -> None:
        _accuracy_axis(axes)
        axes.set_xlabel(f"ε ({threat.get('norm', 'threat')}, images in [0, 1])")
        if threat.get("eps") is not None:
            axes.axvline(threat["eps"], color=ink.muted, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        for line in lines:
            _line(axes, ink, line, band=len(lines) <= FEW)

    return Drawing("eps", lines, draw)


def _cost_plot(details: dict, looks: dict[str, Look]) -> Drawing:
    lines = []
    for name, detail in details.items():
        curve = [(point["forward"] + point["backward"], point) for point in detail.get("cost_curve") or []]
        points = [(cost, point) for cost, point in curve if cost > 0]
        if points:
            lines.append(Line(looks[name], "", points))

    def draw(axes, ink: Ink) -> None:
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

        _accuracy_axis(axes)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("network rows an image, forwards and backwards")
        for line in lines:
            _mark(
                axes, ink, line.look, [x for x, _ in line.points], [100 * point["accuracy"] for _, point in line.points]
            )

    return Drawing("cost", lines, draw)


def _time_plot(rows: list[dict], looks: dict[str, Look]) -> Drawing:
    lines: dict[tuple, Line] = {}
    for row in sorted(rows, key=lambda row: row["x"]):
        system, stage = row["system"], row["stage"]
        lines.setdefault((system, stage), Line(looks[system], stage, [])).points.append((row["x"], row))

    def draw(axes, ink: Ink) -> None:
        _accuracy_axis(axes)
        axes.set_xlabel("t* (where purification starts)")
        for line in lines.values():
            _line(axes, ink, line)

    return Drawing("t-star", list(lines.values()), draw)


def _norm_plot(looks: dict[str, Look], pictures: dict[str, np.ndarray]) -> Drawing:
    found = {look: pictures.get(f"{name}/trajectory_norm") for name, look in looks.items()}
    norms = {look: norm for look, norm in found.items() if norm is not None and norm.size}
    lines = [Line(look, "", [(i, float(norm[i])) for i in (0, norm.size - 1)]) for look, norm in norms.items()]

    def draw(axes, ink: Ink) -> None:
        axes.set_xlabel("step of the purification")
        axes.xaxis.get_major_locator().set_params(integer=True)
        for look, norm in norms.items():
            _mark(axes, ink, look, range(norm.size), norm, markersize=6, markevery=max(1, math.ceil(norm.size / 12)))
        axes.set_ylim(bottom=0)

    return Drawing("trajectory", lines, draw)
