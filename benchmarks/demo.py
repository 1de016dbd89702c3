"""The demo's tables for docs/results.md, from a run of it, and its time beside that of an earlier commit.

python -m benchmarks.demo RUN [--beside CHECKOUT OTHER]

RUN is the folder of a demo; what it lacks is run. With --beside the demo of another checkout runs into OTHER at the
same time, and both are compared by processor time, which other jobs on the machine disturb least. Both folders must be
new then.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import store, tables
from benchmarks.store import Table

HERE = Path(__file__).parents[1]
LADDER = ("blind", "bpda", "exact", "fixed")


def start(checkout: Path, run: Path) -> subprocess.Popen:
    """A checkout's demo, as a person would run it."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    return subprocess.Popen([sys.executable, "-m", "lustral", "demo", f"--out={run}"], env=environment)


def spent(process: subprocess.Popen) -> float:
    """Waits for a process, and gives the processor seconds that it took."""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("A demo did not end well.")
    return usage.ru_utime + usage.ru_stime


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def accuracies(found: dict) -> dict[tuple[str, str], float]:
    return {(row["system"], row["stage"]): row["accuracy"] for row in found["rows"] if row["group"] == "main"}


def levels(found: dict) -> dict[tuple[str, str], str]:
    """The level of every finding, by system and name."""
    return {(system, one["name"]): one["level"] for system, said in found["findings"].items() for one in said}


def gaps(found: dict) -> Table:
    """What the next better attack takes, in points."""
    known = accuracies(found)
    pairs = [("clean", "null"), ("null", "blind"), ("blind", "bpda"), ("bpda", "exact"), ("exact", "fixed")]
    names = [name for name in dict.fromkeys(name for name, _ in known) if (name, "bpda") in known]
    rows = [[name, *(f"{100 * (known[name, a] - known[name, b]):+.1f}" for a, b in pairs)] for name in names]
    return Table(["system", *(f"{a} − {b}" for a, b in pairs)], rows)


def beside(then: dict, now: dict, seconds: tuple[float, float]) -> list[store.Part]:
    """Two demos: their times, and the accuracies of both."""
    a, b = accuracies(then), accuracies(now)
    rows = [[*key, tables.percent(a[key]), tables.percent(b[key])] for key in b if key in a]
    orders = [
        [sorted(LADDER, key=lambda stage: known.get((name, stage), 0)) for name in now["findings"]] for known in (a, b)
    ]
    before, after = levels(then), levels(now)
    both = before.keys() & after.keys()
    changed = [f"{name} of {system}" for system, name in sorted(both) if before[system, name] != after[system, name]]
    said = [
        f"{seconds[0]:.0f} and {seconds[1]:.0f} s of processor time, side by side in one run: "
        f"{seconds[1] / seconds[0]:.2f} of it.",
        f"The order of attacks by what they leave is {'the same' if orders[0] == orders[1] else 'another one'}. Of the "
        f"{len(both)} findings that both have, {', '.join(changed) or 'none'} has another level.",
    ]
    return [*said, Table(["system", "stage", "before", "now"], rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--beside", nargs=2, type=Path, metavar=("CHECKOUT", "OTHER"))
    given = parser.parse_args()
    made = {}
    if given.beside:
        checkout, other = given.beside
        if any(folder.exists() for folder in (given.run, other)):
            sys.exit("Both folders must be new.")
        both = start(checkout, other), start(HERE, given.run)
        seconds = spent(both[0]), spent(both[1])
        made = {"demo-beside": beside(results(other), results(given.run), seconds)}
    else:
        spent(start(HERE, given.run))
    found = results(given.run)
    made |= {"demo": [tables.main_table(found)], "demo-gaps": [gaps(found)]}
    made |= {"demo-findings": tables.findings(found)}
    print(*map(store.text, made.values()), sep="\n\n")
    store.keep("results", made)


if __name__ == "__main__":
    main()
