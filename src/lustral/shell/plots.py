"""The plots of the report, drawn by matplotlib as the inside of SVG elements in the page's own colours."""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

# Stages about in the order of what the attacker knows, then a suite's attacks and what gold shows beside its number.
STAGES = {
    "clean": "Clean",
    "null": "Null control",
    "black-box": "Black box",
    "blind": "Blind",
    "bpda": "BPDA",
    "bpda signs": "BPDA, signs",
    "joint score": "Joint (score)",
    "joint full": "Joint (full)",
    "exact": "Exact",
    "known step": "Step noise known",
    "known init": "Initial noise known",
    "fixed": "Fixed noise",
    "worst": "Worst case",
    "unbounded": "Unbounded",
    "transfer": "Transfer",
    "apgd-bpda": "APGD, BPDA",
    "apgd-margin": "APGD, margin",
    "apgd-ce": "APGD, cross-entropy",
    "apgd-t": "APGD, targeted",
    "fab-t": "FAB, targeted",
    "square": "Square",
    "spsa": "SPSA",
    "apgd-growing": "APGD, growing draws",
    "pgd-200": "PGD, long",
    "low-frequency": "Low frequencies",
    "deviated": "Deviated",
    "held level": "Level held",
    "lowered norm": "Lowered norm",
    "surrogate": "Surrogate",
    "guide": "The guide fooled",
    "stadv": "StAdv",
}

# Matplotlib's markers, and the same shapes as paths about the origin; the first is for the undefended classifier.
SHAPES = (
    ("X", "M-4.6-2.4L-2.4-4.6 0-2.2 2.4-4.6 4.6-2.4 2.2 0 4.6 2.4 2.4 4.6 0 2.2-2.4 4.6-4.6 2.4-2.2 0z"),
    ("o", "M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0-9.2 0z"),
    ("s", "M-4-4h8v8h-8z"),
    ("^", "M0-5L5 4.2H-5z"),
    ("D", "M0-5.4L5.4 0 0 5.4-5.4 0z"),
    ("v", "M0 5L5-4.2H-5z"),
    ("P", "M-1.7-5h3.4v3.3H5v3.4H1.7V5h-3.4V1.7H-5v-3.4h3.3z"),
)

# Matplotlib knows no CSS variables: it draws in these stand-ins, and _plot puts the page's variables in their place.
MUTED, GRID, PAPER = "#000101", "#000102", "#000103"
VARIABLES = {MUTED: "muted", GRID: "grid", PAPER: "paper"} | {f"#0002{i:02x}": f"s{i}" for i in range(len(SHAPES))}
RC = {"svg.fonttype": "none", "svg.hashsalt": "lustral", "text.parse_math": False, "font.size": 11}
RC |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), MUTED)
RC |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left", "ytick.left"), False)
RC |= {"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8}


FEW = 3  # lines whose bands can be told apart


class Look(NamedTuple):
    """How a system appears everywhere on the page: its colour variable, and its shape for matplotlib and as a path."""

    name: str
    label: str
    hue: int
    marker: str
    shape: str

    @property
    def colour(self) -> str:
        return f"#0002{self.hue:02x}"


class Line(NamedTuple):
    """One system's part of a plot: what it is measured at, and the row (or number) there."""

    look: Look
    stage: str
    points: list[tuple]


class Plot(NamedTuple):
    """A plot of the page: what is inside its SVG element, that element's viewBox, what it shows, and how much room."""

    name: str
    box: str
    body: Markup
    lines: list[Line]
    wide: bool


def stages_of(main: dict) -> list[str]:
    """The stages on record: the known ones in the order of the attacker's knowledge, then the others."""
    present = dict.fromkeys(stage for _, stage in main)
    return [stage for stage in STAGES if stage in present] + [stage for stage in present if stage not in STAGES]


def plots(results: dict, main: dict, looks: dict[str, Look], pictures: dict[str, np.ndarray]) -> list[Plot]:
    """Every plot that the results have numbers for; ``main`` has the rows of the main table by system and stage."""
    rows, details = results.get("rows") or [], results.get("details") or {}
    of = {group: [row for row in rows if row.get("group") == group] for group in ("eps", "t_star")}
    found = (
        _stage_plot(main, looks),
        _eps_plot(of["eps"], main, looks, results.get("threat") or {}),
        _cost_plot(details, looks),
        _time_plot(of["t_star"], looks),
        _norm_plot(looks, pictures),
    )
    return [plot for plot in found if plot]


def _plot(name: str, lines: list[Line], draw: Callable, width: float = 6) -> Plot | None:
    """Draws one pair of axes for use inside a page: with the page's colours, ids of its own and no fixed size."""
    if not lines:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    out, no_metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, 3.75), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    svg = out.getvalue()
    box = re.search(r'viewBox="([\d. -]+)"', svg)[1]
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", body)
    body = re.sub("|".join(VARIABLES), lambda hit: f"var(--{VARIABLES[hit[0]]})", body)
    return Plot(name, box, Markup(body), lines, width > 6)


def _accuracy_axis(axes) -> None:
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 25), ["0", "25", "50", "75", "100 %"])


def _mark(axes, look: Look, xs: Sequence[float], ys: Sequence[float], hollow: bool = False, **style) -> None:
    face, edge, width = (PAPER, look.colour, 1.2) if hollow else (look.colour, PAPER, 0.8)
    style = {
        "color": look.colour,
        "marker": look.marker,
        "markersize": 7,
        "linewidth": 1.8,
        "zorder": 3,
    } | style
    axes.plot(xs, ys, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=width, **style)


def _line(axes, line: Line, band: bool = True, **style) -> None:
    """A line of accuracies with a band or, without a line to carry one, with whiskers; clean ones have neither."""
    xs, rows = [x for x, _ in line.points], [row for _, row in line.points]
    low, high = ([100 * row.get(end, row["accuracy"]) for row in rows] for end in ("low", "high"))
    clean = line.stage == "clean"
    if style.get("linestyle") == "none" or (len(xs) == 1 and not clean):
        axes.vlines(xs, low, high, color=line.look.colour, linewidth=1.6, alpha=0.75)
    elif band and not clean:
        axes.fill_between(xs, low, high, color=line.look.colour, alpha=0.14, linewidth=0)
    style = {"linestyle": (0, (4, 2)), "linewidth": 1.3} | style if clean else style
    _mark(axes, line.look, xs, [100 * row["accuracy"] for row in rows], clean, **style)


def _stage_plot(main: dict, looks: dict[str, Look]) -> Plot | None:
    stages = stages_of(main)
    rows = {look: [(s, main[name, s]) for s in stages if (name, s) in main] for name, look in looks.items()}
    lines = [Line(look, "", points) for look, points in rows.items() if points]

    def draw(axes) -> None:
        _accuracy_axis(axes)
        axes.set_xticks(range(len(stages)), [STAGES.get(s, s).replace(" ", "\n") for s in stages])
        axes.set_xlim(-0.5, len(stages) - 0.5)
        axes.tick_params(axis="x", length=0)
        for i, line in enumerate(lines):
            shift = 0.6 * ((i + 0.5) / len(lines) - 0.5)
            shifted = [(stages.index(stage) + shift, row) for stage, row in line.points]
            _line(axes, line._replace(points=shifted), linestyle="none")

    return _plot("stages", lines, draw, 6 if len(stages) * len(lines) <= 24 else 12)


def _eps_plot(rows: list[dict], main: dict, looks: dict[str, Look], threat: dict) -> Plot | None:
    lines = []
    for look in looks.values():
        own = {row["x"]: row for row in rows if row["system"] == look.name}
        clean, exact = main.get((look.name, "clean")), main.get((look.name, "exact"))
        ends = {0.0: clean} if clean else {}
        if exact and exact.get("eps") is not None:
            ends[exact["eps"]] = exact
        if own:
            lines.append(Line(look, "exact", sorted((own | ends).items(), key=lambda point: point[0])))

    def draw(axes) -> None:
        _accuracy_axis(axes)
        axes.set_xlabel(f"ε ({threat.get('norm', 'threat')}, images in [0, 1])")
        if threat.get("eps") is not None:
            axes.axvline(threat["eps"], color=MUTED, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        for line in lines:
            _line(axes, line, band=len(lines) <= FEW)

    return _plot("eps", lines, draw)


def _cost_plot(details: dict, looks: dict[str, Look]) -> Plot | None:
    lines = []
    for name, detail in details.items():
        curve = [(point["forward"] + point["backward"], point) for point in detail.get("cost_curve") or []]
        points = [(cost, point) for cost, point in curve if cost > 0]
        if points:
            lines.append(Line(looks[name], "", points))

    def draw(axes) -> None:
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

        _accuracy_axis(axes)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("network rows an image, forwards and backwards")
        for line in lines:
            _mark(axes, line.look, [x for x, _ in line.points], [100 * point["accuracy"] for _, point in line.points])

    return _plot("cost", lines, draw)


def _time_plot(rows: list[dict], looks: dict[str, Look]) -> Plot | None:
    lines: dict[tuple, Line] = {}
    for row in sorted(rows, key=lambda row: row["x"]):
        system, stage = row["system"], row["stage"]
        lines.setdefault((system, stage), Line(looks[system], stage, [])).points.append((row["x"], row))

    def draw(axes) -> None:
        _accuracy_axis(axes)
        axes.set_xlabel("t* (where purification starts)")
        for line in lines.values():
            _line(axes, line)

    return _plot("t-star", list(lines.values()), draw)


def _norm_plot(looks: dict[str, Look], pictures: dict[str, np.ndarray]) -> Plot | None:
    found = {look: pictures.get(f"{name}/trajectory_norm") for name, look in looks.items()}
    norms = {look: norm for look, norm in found.items() if norm is not None and norm.size}
    lines = [Line(look, "", [(i, float(norm[i])) for i in (0, norm.size - 1)]) for look, norm in norms.items()]

    def draw(axes) -> None:
        axes.set_xlabel("step of the purification")
        axes.xaxis.get_major_locator().set_params(integer=True)
        for look, norm in norms.items():
            _mark(axes, look, range(norm.size), norm, markersize=6, markevery=max(1, math.ceil(norm.size / 12)))
        axes.set_ylim(bottom=0)

    return _plot("trajectory", lines, draw)
