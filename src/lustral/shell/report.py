"""The report: one self-contained HTML page of a run's results and pictures. Reads its own template and nothing else.

Here are the numbers and pictures; plots are in ``plots``, the words and how it all looks in ``report.html``.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from . import grids
from .looks import looks_of, stages_of
from .plots import plots
from .verdict import said, shown, template

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
    known = said(results, looks)
    results, main = known["results"], known["main"]
    attacks = {
        look: [r for r in rows if r.get("group") == "attack" and r["system"] == look.name] for look in looks.values()
    }
    pictures = {name: np.asarray(array) for name, array in pictures.items()}
    gain, films = grids.gain(looks.values(), pictures), sum(name.endswith("/attacked") for name in pictures)
    count = max(2, PICTURED // max(1, films))
    return template().render(
        **known,
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


# What is on the page


def _folds(rows: Iterable[dict]) -> list[tuple[str, str, str]]:
    """The (kind, number of draws, heading) of every fold over draws that some row has."""
    present = {(kind, m) for row in rows for kind in FOLDS for m in row.get(kind) or {}}
    order = sorted(present, key=lambda fold: (list(FOLDS).index(fold[0]), int(fold[1])))
    return [(kind, m, FOLDS[kind].format(m)) for kind, m in order]


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


def _checks(results: dict, main: dict) -> list[dict]:
    """The checks, without the values of systems whose numbers are withheld and not shown all the same."""
    withheld = {name for name in results.get("withheld") or {} if not shown(main, name)}
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
