"""What a run says first, in one sentence, for the report, the terminal and Python; and numbers as text."""

import re
from collections.abc import Sequence
from importlib import resources

import jinja2

from ..evaluate import sizes
from .looks import STAGES, Look, looks_of, main_rows
from .pages import page
from .streams import plain

DASH = "—"
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
CHOSEN = {"black-box", "blind", "bpda", "exact"}  # the controls that the worst case chooses from and so stands for
HARMLESS = {"clean", "null", "unbounded", "stadv"}  # no attack, or none within the threat


def sentence(results: dict) -> str:
    """What the page says first, as one line of text: what was attacked, and how much is left."""
    verdict = template().make_module(said(results, looks_of(results, {}))).verdict()
    return " ".join(verdict.striptags().split())


def said(results: dict, looks: dict[str, Look]) -> dict:
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
        "caveat": sizes.caveat(results.get("suite")),
        "unsaid": [looks[name].label for name in withheld if not shown(main, name)],
    }


def template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (resources.files(__package__) / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
        finalize=_shown,
    )
    environment.filters |= {"percent": _percent, "interval": _interval, "estimate": _estimate, "number": _number}
    environment.filters |= {"histogram": _histogram, "p_value": _p_value, "points": _points, "reading": _reading}
    environment.filters |= {"spaced": lambda text: re.sub(r"(?<=\d)%", " %", text)}
    environment.filters |= {"claim": _claim, "stage": lambda name: STAGES.get(name, name), "seconds": _seconds}
    environment.globals["page"] = page
    return environment.get_template("report.html")


def _shown(value: object) -> object:
    """What a page shows of a value: a dash for none, and of text that is no markup only what prints."""
    if value is None or isinstance(value, jinja2.Undefined):
        return DASH
    if type(value) is not str:
        return value
    return "\n".join(plain(row) for row in value.split("\n"))


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
        if stage not in HARMLESS and not chosen and (system not in withheld or shown(main, system)):
            attacked.setdefault(looks[system], []).append(row)
    return [(look, min(rows, key=lambda row: row["accuracy"])) for look, rows in attacked.items()]


def shown(main: dict, system: str) -> bool:
    return any((system, stage) in main for stage in ("worst", "exact"))


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


def _histogram(right: Sequence[int], draws: int) -> list[int]:
    """How many images have 0, 1, … all of the draws right."""
    return [right.count(count) for count in range(draws + 1)]
