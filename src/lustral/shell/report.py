"""The report: one self-contained HTML page of a run's results and pictures. Reads its own template and nothing else.

Here are the numbers and pictures; plots are in ``plots``, the words and how it all looks in ``report.html``.
"""

import re
from collections.abc import Iterable, Sequence
from importlib import resources

import jinja2
import numpy as np

from . import grids
from .looks import Look, looks_of
from .pages import page
from .plots import STAGES, main_rows, plots, stages_of

DASH = "—"
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
CHOSEN = {"black-box", "blind", "bpda", "exact"}  # the controls that the worst case chooses from and so stands for
HARMLESS = {"clean", "null", "unbounded", "stadv"}  # no attack, or none within the threat
FOLDS = {"worst_of": "Worst of {}", "majority_of": "Majority of {}", "mean_logit_of": "Mean logits of {}"}

PICTURED = 16  # images of all systems together, though two of each at least


def render(results: dict, pictures: dict[str, np.ndarray]) -> str:
    """One HTML page without scripts or outside requests.

    ``pictures`` holds per system images [k, c, h, w] in [0, 1] (``adp/clean``, ``/attacked``, ``/purified``), labels
    [k, 3] (``/said``: on clean, attacked, purified), frames [n, c, h, w] (``/trajectory``) and their rms distances to
    the clean image [n] (``/trajectory_norm``); ``y`` [k] has the true labels.
    """
    names = (results.get("data") or {}).get("classes") or []
    rows, details, looks = results.get("rows") or [], results.get("details") or {}, looks_of(results, pictures)
    said = _said(results, looks)
    results, main = said["results"], said["main"]
    attacks = {
        look: [r for r in rows if r.get("group") == "attack" and r["system"] == look.name] for look in looks.values()
    }
    pictures = {name: np.asarray(array) for name, array in pictures.items()}
    gain, films = grids.gain(looks.values(), pictures), sum(name.endswith("/attacked") for name in pictures)
    count = max(2, PICTURED // max(1, films))
    return _template().render(
        **said,
        shown=[(None, row) for row in rows if row.get("group", "main") in ("main", "attack")],
        attacks={look: found for look, found in attacks.items() if found},
        stages=stages_of(main),
        folds=_folds(rows),
        optional=_optional(rows),
        held={row["system"] for row in rows if row.get("held")},
        checks=_checks(results, main),
        detailed=[looks[name] for name in details],
        details=details,
        risks=_risks(details),
        published=_published(details),
        classes=_classes(details, names),
        plots=plots(results, looks, pictures),
        gain=gain,
        attacked=grids.attacked(looks.values(), pictures),
        grids=[grid for look in looks.values() if (grid := grids.grid(look, pictures, gain, count, names))],
        strips=[strip for look in looks.values() if (strip := grids.strip(look, pictures))],
    )


def sentence(results: dict) -> str:
    """What the page says first, as one line of text: what was attacked, and how much is left."""
    said = _template().make_module(_said(results, looks_of(results, {}))).verdict()
    return " ".join(said.striptags().split())


def _said(results: dict, looks: dict[str, Look]) -> dict:
    """What the first sentence is made of."""
    withheld, main, threat = results.get("withheld") or {}, main_rows(results), results.get("threat") or {}
    heads = _heads(main, looks, withheld)
    spelt = {"threat": threat | {"norm": NORMS.get(threat["norm"], threat["norm"])}} if threat else {}
    return {
        "results": results | spelt,
        "looks": looks,
        "main": main,
        "systems": [look for look in looks.values() if any(name == look.name for name, _ in main)],
        "heads": heads,
        "lowest": [(look, row) for look, row in _lowest(main, looks, withheld) if (look, row) not in heads],
        "unsaid": [looks[name].label for name in withheld if not _shown(main, name)],
    }


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (resources.files(__package__) / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
        finalize=lambda value: DASH if value is None or isinstance(value, jinja2.Undefined) else value,
    )
    environment.filters |= {"percent": _percent, "interval": _interval, "estimate": _estimate, "number": _number}
    environment.filters |= {"histogram": _histogram, "p_value": _p_value, "points": _points, "reading": _reading}
    environment.filters |= {"spaced": lambda text: re.sub(r"(?<=\d)%", " %", text)}
    environment.globals["page"] = page
    environment.filters |= {"claim": _claim, "stage": lambda name: STAGES.get(name, name), "seconds": _seconds}
    return environment.get_template("report.html")


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


def _points(difference: Sequence[float]) -> str:
    """(-0.4, -0.7, -0.133) → '−40 [−70, −13]' percentage points."""
    value, low, high = (f"{round(100 * part):+d}".replace("-", "−").replace("+0", "0") for part in difference)
    return f"{value} [{low}, {high}]"


def _p_value(p: object) -> object:
    """Two digits, or '< 0.001'; a dash where a run has none."""
    return DASH if not isinstance(p, int | float) else "< 0.001" if p < 0.001 else _number(p, 2)


def _reading(test: dict, looks: dict[str, Look]) -> str:
    """Which of two systems the interval of their difference speaks for, and a test too; McNemar's p where it is all."""
    if test.get("difference"):
        value, low, high = test["difference"]
        clear = (low > 0 or high < 0) and test.get("p_flip", 0.0) < 0.05
    else:
        value, clear = test["only_a"] - test["only_b"], test["p"] < 0.05
    return f"{looks[test['a' if value > 0 else 'b']].label} is better" if clear else "no clear difference"


def _seconds(value: float | None) -> str:
    return f"{value:,.1f}" if isinstance(value, int | float) else DASH


def _claim(check: dict) -> str:
    """'blind ≥ exact' with its values: 'Blind 91 % ≥ Exact 72 %'; claims of another form are followed by the values."""
    values = [_percent(value, check.get("images")) for value in check.get("values") or []]
    parts = re.split(r"\s*([≥≤><≈=])\s*", check["claim"])
    if len(parts) == 1 or len(parts[::2]) != len(values) > 0:
        return f"{check['claim']}: {', '.join(values)}" if values else check["claim"]
    parts[::2] = [STAGES.get(part.lower(), part) for part in parts[::2]]
    parts[::2] = [f"{part} {value}" for part, value in zip(parts[::2], values, strict=True)] if values else parts[::2]
    return " ".join(parts)


# What is on the page


def _folds(rows: Iterable[dict]) -> list[tuple[str, str, str]]:
    """The (kind, number of draws, heading) of every fold over draws that some row has."""
    present = {(kind, m) for row in rows for kind in FOLDS for m in row.get(kind) or {}}
    order = sorted(present, key=lambda fold: (list(FOLDS).index(fold[0]), int(fold[1])))
    return [(kind, m, FOLDS[kind].format(m)) for kind, m in order]


def _heads(main: dict, looks: dict[str, Look], withheld: dict) -> list[tuple[Look, dict]]:
    """Every system's number: the worst case where there is one, else the exact attack, else the lowest on record."""
    lowest = {look.name: row for look, row in _lowest(main, looks, withheld)}
    found = [(look, main.get((name, "worst")) or main.get((name, "exact"))) for name, look in looks.items()]
    return [(look, row or lowest[look.name]) for look, row in found if row or look.name in lowest]


def _lowest(main: dict, looks: dict[str, Look], withheld: dict) -> list[tuple[Look, dict]]:
    """The row of the attack that every system does worst against, where its number is not withheld."""
    attacked: dict[Look, list[dict]] = {}
    for (system, stage), row in main.items():
        chosen = stage in CHOSEN and (system, "worst") in main
        if stage not in HARMLESS and not chosen and (system not in withheld or _shown(main, system)):
            attacked.setdefault(looks[system], []).append(row)
    return [(look, min(rows, key=lambda row: row["accuracy"])) for look, rows in attacked.items()]


def _optional(rows: Iterable[dict]) -> set[str]:
    """The columns of the results table that say something: others would be dashes, or repeat the accuracy."""
    found = set()
    for row in rows:
        single = row.get("single_draw") or [None]
        said = {
            "null": isinstance(row.get("null"), int | float),
            "single": single[0] is not None and abs(single[0] - row["accuracy"]) > 1e-9,
            "looked": bool(row.get("null_looked")),
        }
        found |= {name for name, says in said.items() if says}
    return found


def _shown(main: dict, system: str) -> bool:
    return any((system, stage) in main for stage in ("worst", "exact"))


def _checks(results: dict, main: dict) -> list[dict]:
    """The checks, without the values of systems whose numbers are withheld and not shown all the same."""
    withheld = {name for name in results.get("withheld") or {} if not _shown(main, name)}
    return [check | ({"values": []} if check["system"] in withheld else {}) for check in results.get("ordering") or []]


# Details: a system's numbers, counted in every way


def _risks(details: dict) -> dict:
    """The numbers of resubmissions, and every system's lines: rule, its draws, and (robust, clean) at each of those."""
    ms = sorted({risk["m"] for detail in details.values() for risk in detail.get("risks") or []})
    lines = {}
    for name, detail in details.items():
        robust, clean = (
            {(risk["rule"], risk["k"], risk["m"]): risk["accuracy"] for risk in detail.get(kind) or []}
            for kind in ("risks", "clean_risks")
        )
        rules = dict.fromkeys((rule, k) for rule, k, _ in robust)
        lines[name] = [(*rule, [(robust.get((*rule, m)), clean.get((*rule, m))) for m in ms]) for rule in rules]
    return {"ms": ms, "lines": {name: found for name, found in lines.items() if found}}


def _published(details: dict) -> dict[tuple[str, str, str], dict]:
    """By source, name and definition of others' metrics that some system has enough draws for: every system's value."""
    found: dict[tuple[str, str, str], dict] = {}
    for name, detail in details.items():
        for item in detail.get("published") or []:
            found.setdefault((item["source"], item["name"], item["definition"]), {})[name] = item["value"]
    return {metric: values for metric, values in found.items() if any(values.values())}


def _classes(details: dict, names: Sequence[str]) -> dict[str, dict]:
    """By class, in the order of their numbers: the accuracy of every system."""
    found: dict[str, dict] = {}
    for name, detail in details.items():
        for label, value in (detail.get("per_class") or {}).items():
            found.setdefault(int(label), {})[name] = value
    return {grids.called(label, names): found[label] for label in sorted(found)}


def _histogram(right: Sequence[int], draws: int) -> list[int]:
    """How many images have 0, 1, … all of the draws right."""
    return np.bincount(right, minlength=draws + 1).tolist()
