"""How systems and stages appear, everywhere alike: labels, an order, and a system's colour and shape."""

from typing import NamedTuple

UNDEFENDED = "undefended"
LABELS = {
    UNDEFENDED: "Undefended",
    "adp": "ADP",
    "diffpure-sde": "DiffPure SDE",
    "diffpure-ode": "DiffPure ODE",
    "diffpure-ddpm": "DiffPure DDPM",
    "diffpure-ddim": "DiffPure DDIM",
    "diffpure-sde-fixed": "DiffPure SDE, fixed noise",
}

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


class Look(NamedTuple):
    """How a system appears everywhere on the page: its colour variable, and its shape for matplotlib and as a path."""

    name: str
    label: str
    hue: int
    marker: str
    shape: str


def looks_of(results: dict, pictures: dict) -> dict[str, Look]:
    """Every system of the results and pictures, in the order of appearance."""
    names = [item["system"] for kind in ("rows", "ordering") for item in results.get(kind) or []]
    names += [name for kind in ("details", "findings", "withheld", "certificates") for name in results.get(kind) or {}]
    names += [test[side] for test in results.get("paired") or [] for side in "ab"]
    names = list(dict.fromkeys([*names, *(name.rsplit("/", 1)[0] for name in pictures if "/" in name)]))
    defended, n = [name for name in names if name != UNDEFENDED], len(SHAPES) - 1
    # Every further n systems get the same colours with other shapes.
    places = {name: (1 + i % n, 1 + (i + i // n) % n) for i, name in enumerate(defended)} | {UNDEFENDED: (0, 0)}
    return {name: Look(name, LABELS.get(name, name), places[name][0], *SHAPES[places[name][1]]) for name in names}


def main_rows(results: dict) -> dict[tuple[str, str], dict]:
    """The rows of the main table by system and stage."""
    rows = results.get("rows") or []
    return {(row["system"], row["stage"]): row for row in rows if row.get("group", "main") == "main"}


def stages_of(main: dict) -> list[str]:
    """The stages on record: the known ones in the order of the attacker's knowledge, then the others."""
    present = dict.fromkeys(stage for _, stage in main)
    return [stage for stage in STAGES if stage in present] + [stage for stage in present if stage not in STAGES]
