"""Markdown tables of a run's results, as docs/results.md and docs/results/ have them.

python -m benchmarks.tables RUN [main|risks|published|findings]
"""

import json
import sys
from pathlib import Path


def percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f}%"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main_table(found: dict) -> str:
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
                    f"{100 * row['low']:.0f}–{100 * row['high']:.0f}",
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
    return table(head, rows)


def risks(found: dict) -> str:
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
    return table(["system", "rule", "k", "m = 1", "m = 5", "m = 10", "m = 20"], rows)


def published(found: dict) -> str:
    """The metrics of other evaluations from the same draws."""
    names = [f"{item['source']} {item['name']}" for item in next(iter(found["details"].values()))["published"]]
    rows = [
        [system, *(percent(item["value"] and item["value"][0]) for item in details["published"])]
        for system, details in found["details"].items()
    ]
    return table(["system", *names], rows)


def findings(found: dict) -> str:
    """What is not green."""
    rows = [
        [system, finding["level"], finding["name"], finding["text"]]
        for system, said in found["findings"].items()
        for finding in said
        if finding["level"] != "green"
    ]
    return table(["system", "level", "finding", "what it says"], rows)


TABLES = {"main": main_table, "risks": risks, "published": published, "findings": findings}

if __name__ == "__main__":
    results = json.loads(Path(sys.argv[1], "results.json").read_text(encoding="utf-8"))
    for name in sys.argv[2:] or TABLES:
        print(TABLES[name](results), end="\n\n")
