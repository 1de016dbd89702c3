"""Markdown tables of a run's results, as docs/results.md and docs/results/ have them.

python -m benchmarks.tables RUN [main|matrix|pairs|risks|published|costs|findings] [--against SYSTEM] [--keep PAGE]

With --keep they become the stored results that `python -m benchmarks.pages` writes the page from.
"""

import argparse
import json
from pathlib import Path

from benchmarks import store
from benchmarks.store import Part, Table


def percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f}%"


def interval(row: dict) -> str:
    return f"{100 * row['low']:.0f}–{100 * row['high']:.0f}"


def main_table(found: dict) -> Table:
    """One line per system and stage, the curve over eps excepted."""
    head = ["system", "stage", "accuracy", "95 %", "null control", "null at looks", "single draw", "worst of 10"]
    head += ["majority of 10", "images", "draws", "EOT", "looks", "forward", "backward"]
    rows = []
    for row in found["rows"]:
        if row["group"] in ("main", "attack"):
            looked = row.get("null_looked")
            left = row["images"] if row["attacked"] == row["images"] else f"{row['attacked']} of {row['images']}"
            rows.append(
                [
                    row["system"],
                    f"**{row['stage']}**" if row["stage"] == "worst" else row["stage"],
                    percent(row["accuracy"]) + ("*" if row["held"] else ""),
                    interval(row),
                    percent(row["null"]),
                    percent(looked["accuracy"]) if looked else "—",
                    percent(row["single_draw"][0]),
                    percent(row["worst_of"].get("10")),
                    percent(row["majority_of"].get("10")),
                    str(left),
                    str(row["draws"]),
                    str(row["eot"] or "—"),
                    str(row["looks"]),
                    f"{row['forward']:,}",
                    f"{row['backward']:,}",
                ]
            )
    return Table(head, rows)


def matrix(found: dict) -> Table:
    """One line per system, a column per stage at full eps: accuracies; the worst case with its interval."""
    shown = [row for row in found["rows"] if row["group"] in ("main", "attack")]
    stages = list(dict.fromkeys(row["stage"] for row in shown if row["stage"] != "worst"))
    cells = {(row["system"], row["stage"]): row for row in shown}
    rows = []
    for system in dict.fromkeys(row["system"] for row in shown):
        number = "—"  # without a suite there is no worst case
        if worst := cells.get((system, "worst")):
            mark = "*" if worst["held"] else ""
            number = f"**{percent(worst['accuracy'])}**{mark} {interval(worst)}"
        accuracies = [
            percent(cells[system, stage]["accuracy"]) if (system, stage) in cells else "—" for stage in stages
        ]
        rows.append([system, number, *accuracies])
    return Table(["system", "worst, 95 %", *stages], rows)


def pairs(found: dict, against: str | None = None) -> Table:
    """Pairs of systems at the worst case, on the images that both saw; all of them, or those with one system."""
    rows = []
    for test in found["paired"]:
        if against in (None, test["a"], test["b"]):
            turn = test["a"] == against  # the system that others stand against comes second
            a, b = (test["b"], test["a"]) if turn else (test["a"], test["b"])
            value, low, high = (100 * v for v in test["difference"])
            value, low, high = (-value, -high, -low) if turn else (value, low, high)
            rows.append([test["stage"], a, b, f"{value:+.1f}", f"{low:+.1f} to {high:+.1f}", f"{test['p']:.3g}"])
    return Table(["stage", "a", "b", "a − b, points", "95 %", "McNemar p"], rows)


def risks(found: dict) -> Table:
    """Every threat statement of every system: rule and draws against resubmissions, robust (clean)."""
    rows = []
    for system, details in found["details"].items():
        clean = {(r["rule"], r["k"], r["m"]): r["accuracy"][0] for r in details["clean_risks"]}
        robust = {(r["rule"], r["k"], r["m"]): r["accuracy"][0] for r in details["risks"]}
        for rule, k in dict.fromkeys((rule, k) for rule, k, _ in robust):
            cells = [(robust.get((rule, k, m)), clean.get((rule, k, m))) for m in (1, 5, 10, 20)]
            rows.append(
                [system, rule, str(k), *("—" if a is None else f"{percent(a)} ({percent(b)})" for a, b in cells)]
            )
    return Table(["system", "rule", "k", "m = 1", "m = 5", "m = 10", "m = 20"], rows)


def published(found: dict) -> Table:
    """The metrics of other evaluations from the same draws."""
    names = [f"{item['source']} {item['name']}" for item in next(iter(found["details"].values()))["published"]]
    rows = [
        [system, *(percent(item["value"] and item["value"][0]) for item in details["published"])]
        for system, details in found["details"].items()
    ]
    return Table(["system", *names], rows)


def costs(found: dict) -> Table:
    """What every system's whole evaluation took, and one purification of a clean image."""
    rows = []
    for system in dict.fromkeys(row["system"] for row in found["rows"]):
        mine = [row for row in found["rows"] if row["system"] == system]
        clean = next((row for row in mine if row["stage"] == "clean"), None)
        calls = f"{clean['forward'] / clean['images'] / clean['draws']:.1f}" if clean else "—"
        spent = (f"{sum(row[way] for row in mine) / 1e6:.2f}" for way in ("forward", "backward"))
        rows.append([system, calls, *spent, f"{sum(row['seconds'] for row in mine) / 60:.0f}"])
    head = ["system", "calls a draw", "million rows forward", "million rows backward", "minutes of a core"]
    return Table(head, rows)


def findings(found: dict) -> list[Part]:
    """What is not green; systems of which the same is said share a line."""
    who: dict[tuple[str, ...], list[str]] = {}
    for system, said in found["findings"].items():
        for finding in said:
            if finding["level"] != "green":
                who.setdefault((finding["level"], finding["name"], finding["text"]), []).append(system)
    rows = [[level, name, ", ".join(systems), text] for (level, name, text), systems in sorted(who.items(), key=_worst)]
    said = Table(["level", "finding", "systems", "what it says"], rows) if rows else "No finding is amber or red."
    return [said, *found.get("caveats", [])]


def _worst(item: tuple[tuple[str, ...], list[str]]) -> tuple[bool, str]:
    (level, name, _), _ = item
    return level != "red", name


TABLES = {"main": main_table, "matrix": matrix, "pairs": pairs, "risks": risks, "published": published}
TABLES |= {"costs": costs, "findings": findings}


def chosen(found: dict, names: list[str], against: str | None = None) -> dict[str, list[Part]]:
    """Parts of a page by the names of their tables."""
    made = {name: pairs(found, against) if name == "pairs" else TABLES[name](found) for name in names}
    return {name: [part] if isinstance(part, Table) else part for name, part in made.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("tables", nargs="*", default=list(TABLES), help=", ".join(TABLES))
    parser.add_argument("--against", help="the one system that pairs are shown with")
    parser.add_argument("--keep", metavar="PAGE", help="store them as docs/results/data/PAGE.json")
    given = parser.parse_args()
    results = json.loads((given.run / "results.json").read_text(encoding="utf-8"))
    made = chosen(results, given.tables, given.against)
    print(*map(store.text, made.values()), sep="\n\n")
    if given.keep:
        store.keep(given.keep, made)
