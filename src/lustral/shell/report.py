"""The report: one self-contained HTML page of a run's results and pictures. Reads its own template and nothing else.

Here are the numbers, plots and pictures; the words, and how it all looks, are in ``report.html``.
"""

import base64
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

DASH = "—"
UNDEFENDED = "undefended"
LABELS = {
    UNDEFENDED: "Undefended",
    "adp": "ADP",
    "diffpure-sde": "DiffPure SDE",
    "diffpure-ode": "DiffPure ODE",
    "diffpure-ddpm": "DiffPure DDPM",
}
STAGES = {
    "clean": "Clean",
    "null": "Null control",
    "blind": "Blind",
    "bpda": "BPDA",
    "exact": "Exact",
    "fixed": "Fixed noise",
}
FOLDS = {"worst_of": "Worst of {}", "majority_of": "Majority of {}", "mean_logit_of": "Mean logits of {}"}

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

TILE = 96  # px: smaller images are enlarged by a whole factor, since printers smooth what CSS keeps sharp
FRAMES = 10


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
    """A plot of the page: what is inside its SVG element, that element's viewBox, and what it shows."""

    name: str
    box: str
    body: Markup
    lines: list[Line]


class Tile(NamedTuple):
    """A picture, what it is, what the classifier said of it (None: not asked) and whether that was right."""

    src: str
    what: str
    said: int | None
    right: bool | None


def render(results: dict, pictures: dict[str, np.ndarray]) -> str:
    """One HTML page without scripts or outside requests.

    ``pictures`` holds per system images [k, c, h, w] in [0, 1] (``adp/clean``, ``/attacked``, ``/purified``), labels
    [k, 3] (``/said``: on clean, attacked, purified), frames [n, c, h, w] (``/trajectory``) and their rms distances to
    the clean image [n] (``/trajectory_norm``); ``y`` [k] has the true labels.
    """
    rows, looks = results.get("rows") or [], _looks(results, pictures)
    main = {(row["system"], row["stage"]): row for row in rows if row.get("group", "main") == "main"}
    pictures = {name: np.asarray(array) for name, array in pictures.items()}
    gain = _gain(looks.values(), pictures)
    return _template().render(
        results=results,
        looks=looks,
        main=main,
        systems=[look for look in looks.values() if any(name == look.name for name, _ in main)],
        stages=_stages(main),
        folds=_folds(main.values()),
        lowest=_lowest(main, looks),
        plots=_plots(rows, main, looks, results.get("threat") or {}, pictures),
        gain=gain,
        grids=[grid for look in looks.values() if (grid := _grid(look, pictures, gain))],
        strips=[strip for look in looks.values() if (strip := _strip(look, pictures))],
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
        finalize=lambda value: DASH if value is None or isinstance(value, jinja2.Undefined) else value,
    )
    environment.filters |= {"percent": _percent, "interval": _interval, "estimate": _estimate, "number": _number}
    environment.filters |= {"claim": _claim, "stage": lambda name: STAGES.get(name, name), "seconds": _seconds}
    return environment.from_string((resources.files(__package__) / "report.html").read_text(encoding="utf-8"))


# Numbers as text


def _percent(value: float | None, images: int | None = None) -> str:
    """0.714 → '71 %'; a decimal more for above 100 images, and where rounding would turn nearly all into all."""
    if not isinstance(value, int | float):
        return DASH
    value, digits = round(value, 6), int((images or 0) > 100)
    while 0 < value < 1 and digits < 3 and round(100 * value, digits) in (0, 100):
        digits += 1
    return f"{100 * value:.{0 if value in (0, 1) else digits}f} %"


def _interval(bounds: Sequence[float | None], images: int | None = None) -> str:
    """(0.61, 0.79) → '[61, 79]'; nothing where a bound is missing."""
    known, digits = all(isinstance(bound, int | float) for bound in bounds), int((images or 0) > 100)
    return f"[{', '.join(f'{100 * bound:.{digits}f}' for bound in bounds)}]" if known else ""


def _estimate(row: dict) -> str:
    """'71 % [61, 79]' of a row."""
    images = row.get("images")
    return f"{_percent(row.get('accuracy'), images)} {_interval((row.get('low'), row.get('high')), images)}".strip()


def _number(value: object, digits: int = 4) -> object:
    """Thousands separators for whole numbers, ``digits`` significant ones for others; what is no number as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _seconds(value: float | None) -> str:
    return f"{value:,.1f}" if isinstance(value, int | float) else DASH


def _claim(check: dict) -> str:
    """'blind ≥ exact' with its values: 'Blind 91 % ≥ Exact 72 %'; claims of another form are followed by the values."""
    parts, values = re.split(r"\s*([≥≤><≈=])\s*", check["claim"]), [_percent(v) for v in check.get("values") or []]
    if len(parts) == 1 or len(parts[::2]) != len(values):
        return f"{check['claim']}: {', '.join(values)}" if values else check["claim"]
    named = [f"{STAGES.get(part.lower(), part)} {value}" for part, value in zip(parts[::2], values, strict=True)]
    return " ".join(word for pair in zip(named, [*parts[1::2], ""], strict=True) for word in pair).strip()


# What is on the page


def _looks(results: dict, pictures: dict) -> dict[str, Look]:
    """Every system of the rows, checks and pictures, in the order of appearance."""
    names = [item["system"] for kind in ("rows", "ordering") for item in results.get(kind) or []]
    names += [test[side] for test in results.get("paired") or [] for side in "ab"]
    names = list(dict.fromkeys([*names, *(name.rsplit("/", 1)[0] for name in pictures if "/" in name)]))
    defended, n = [name for name in names if name != UNDEFENDED], len(SHAPES) - 1
    # Every further n systems get the same colours with other shapes.
    places = {name: (1 + i % n, 1 + (i + i // n) % n) for i, name in enumerate(defended)} | {UNDEFENDED: (0, 0)}
    return {name: Look(name, LABELS.get(name, name), places[name][0], *SHAPES[places[name][1]]) for name in names}


def _stages(main: dict) -> list[str]:
    """The stages on record: the known ones in the order of the attacker's knowledge, then the others."""
    present = dict.fromkeys(stage for _, stage in main)
    return [stage for stage in STAGES if stage in present] + [stage for stage in present if stage not in STAGES]


def _folds(rows: Iterable[dict]) -> list[tuple[str, str, str]]:
    """The (kind, number of draws, heading) of every fold over draws that some row has."""
    present = {(kind, m) for row in rows for kind in FOLDS for m in row.get(kind) or {}}
    order = sorted(present, key=lambda fold: (list(FOLDS).index(fold[0]), int(fold[1])))
    return [(kind, m, FOLDS[kind].format(m)) for kind, m in order]


def _lowest(main: dict, looks: dict[str, Look]) -> list[tuple[Look, dict]]:
    """The row of the attack that every system does worst against."""
    attacked: dict[Look, list[dict]] = {}
    for (system, stage), row in main.items():
        if stage not in ("clean", "null"):
            attacked.setdefault(looks[system], []).append(row)
    return [(look, min(rows, key=lambda row: row["accuracy"])) for look, rows in attacked.items()]


# Plots


def _plots(rows: list[dict], main: dict, looks: dict[str, Look], threat: dict, pictures: dict) -> list[Plot]:
    of = {group: [row for row in rows if row.get("group") == group] for group in ("eps", "t_star")}
    plots = _stage_plot(main, looks), _eps_plot(of["eps"], main, looks, threat), _time_plot(of["t_star"], looks)
    return [plot for plot in (*plots, _norm_plot(looks, pictures)) if plot]


def _plot(name: str, lines: list[Line], draw: Callable) -> Plot | None:
    """Draws one pair of axes for use inside a page: with the page's colours, ids of its own and no fixed size."""
    if not lines:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    out, no_metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6, 3.75), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    svg = out.getvalue()
    box = re.search(r'viewBox="([\d. -]+)"', svg)[1]
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", body)
    return Plot(name, box, Markup(re.sub("|".join(VARIABLES), lambda hit: f"var(--{VARIABLES[hit[0]]})", body)), lines)


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


def _line(axes, line: Line, **style) -> None:
    """A line of accuracies with a band or, without a line to carry one, with whiskers; clean ones have neither."""
    xs, rows = [x for x, _ in line.points], [row for _, row in line.points]
    low, high = ([100 * row.get(end, row["accuracy"]) for row in rows] for end in ("low", "high"))
    clean = line.stage == "clean"
    if style.get("linestyle") == "none" or (len(xs) == 1 and not clean):
        axes.vlines(xs, low, high, color=line.look.colour, linewidth=1.6, alpha=0.75)
    elif not clean:
        axes.fill_between(xs, low, high, color=line.look.colour, alpha=0.14, linewidth=0)
    style = {"linestyle": (0, (4, 2)), "linewidth": 1.3} | style if clean else style
    _mark(axes, line.look, xs, [100 * row["accuracy"] for row in rows], clean, **style)


def _stage_plot(main: dict, looks: dict[str, Look]) -> Plot | None:
    stages = _stages(main)
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

    return _plot("stages", lines, draw)


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
            _line(axes, line)

    return _plot("eps", lines, draw)


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


# Pictures


def _png(image: np.ndarray) -> str:
    """The data URI of an image [c, h, w] with 1 or 3 channels, clipped to [0, 1]."""
    from PIL import Image

    pixels = (np.nan_to_num(image).clip(0, 1) * 255).round().astype(np.uint8)
    factor = max(1, math.ceil(TILE / max(pixels.shape[1:])))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    out = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _gain(looks: Iterable[Look], pictures: dict[str, np.ndarray]) -> float:
    """The largest amplification, to two digits, that shows every change on the page without clipping."""
    pairs = [(pictures.get(f"{look.name}/clean"), pictures.get(f"{look.name}/attacked")) for look in looks]
    largest = max((np.abs(b - a).max(initial=0) for a, b in pairs if a is not None and b is not None), default=0)
    if not 1e-6 < largest < np.inf:
        return 1.0
    scale = 10 ** (math.floor(math.log10(0.5 / largest)) - 1)
    return float(f"{math.floor(0.5 / largest / scale + 1e-6) * scale:.2g}")


def _grid(look: Look, pictures: dict[str, np.ndarray], gain: float) -> dict | None:
    """One system's pictures: a row per image of clean, attacked, amplified change and purified."""
    clean, attacked, purified = (pictures.get(f"{look.name}/{kind}") for kind in ("clean", "attacked", "purified"))
    if attacked is not None and np.array_equal(attacked, purified):
        purified = None  # nothing purifies here
    change = 0.5 + gain * (attacked - clean) if clean is not None and attacked is not None else None
    columns = {"clean": clean, "attacked": attacked, f"change ×{gain:g}": change, "purified": purified}
    columns = {what: images for what, images in columns.items() if images is not None}
    said, y = pictures.get(f"{look.name}/said"), pictures.get("y")
    asked = {"clean": 0, "attacked": 1, "purified": 2} if said is not None else {}

    def tile(what: str, i: int) -> Tile:
        label = int(said[i][asked[what]]) if what in asked else None
        return Tile(_png(columns[what][i]), what, label, None if label is None or y is None else label == int(y[i]))

    count = min(map(len, columns.values()), default=0)
    rows = [(None if y is None else int(y[i]), [tile(what, i) for what in columns]) for i in range(count)]
    return {"look": look, "columns": list(columns), "rows": rows} if rows else None


def _strip(look: Look, pictures: dict[str, np.ndarray]) -> dict | None:
    """Up to ten frames of one system's purification, evenly spaced from the attacked to the purified image."""
    frames = pictures.get(f"{look.name}/trajectory")
    if frames is None or not len(frames):
        return None
    steps = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)).tolist()
    return {"look": look, "last": steps[-1], "frames": [(step, _png(frames[step])) for step in steps]}
