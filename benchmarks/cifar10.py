"""The tables on CIFAR-10: one `lustral evaluate` after another, then the tables, printed and stored for the page.

python -m benchmarks.cifar10 FOLDER [ROW …]

A row is a file of docs/results/cifar10/, some with a corruption in front, or the recommended defence. Says how much is
done, by network calls, and how long the rest may take; interrupted, it goes on where it stopped. LUSTRAL_DATA names the
folder of `lustral data`. Rows of networks that do not ship (budget, longer) need LUSTRAL_WEIGHTS, the folder of
`python -m benchmarks.cifar10_training`, and are left out without it.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from benchmarks import store, tables, trainings
from benchmarks.store import Part, Table
from lustral.core.errors import UserError
from lustral.shell import config, plan, runner, standard
from lustral.shell.images.corruptions import CORRUPTIONS
from lustral.shell.options import Resources

CONFIGS = Path(__file__).parents[1] / "docs/results/cifar10"
DETECTED, DETECTOR = "blind", ("--denoiser=cifar10-field", "--sigma=0.1")
"""The row whose attacked images are to be told from clean ones, and how: by ADP's score norm."""


def rows() -> dict[str, tuple[Path, str | None]]:
    """The configuration of every row, and its corruption."""
    found = {path.stem: (path, None) for path in sorted(CONFIGS.glob("*.yaml"))}
    corrupted, _ = found.pop("corruptions")
    found["recommended"] = config.recommended()["cifar10"], None
    return found | {f"corruptions-{name}": (corrupted, f"{name}-3") for name in CORRUPTIONS}


@cache
def cost(path: Path) -> float:
    """Network rows that a configuration takes, about."""
    made = plan.make(config.read(path), Resources())
    return sum(runner.work(job) * job.images for job in made.jobs)


def possible(chosen: dict[str, tuple[Path, str | None]]) -> Iterator[str]:
    """The rows that can be run here; says why the others cannot."""
    for name, (path, _) in chosen.items():
        try:
            cost(path)
        except UserError as e:
            print(f"row {name} is left out: {e}", flush=True)
        else:
            yield name


def finished(place: Path, path: Path, corruption: str | None) -> bool:
    """Whether a folder has the results of just this configuration; ``lustral evaluate`` refuses those of another."""
    if not (place / "results.json").exists():
        return False
    asked = asdict(standard.evaluation(replace(config.read(path), corruption=corruption)))
    return json.loads((place / "run.json").read_text(encoding="utf-8")) == json.loads(json.dumps(asked))


def run(folder: Path, chosen: dict[str, tuple[Path, str | None]]) -> None:
    """Runs what is not finished; the estimate of the time left is from the rows that this call ran."""
    costs = {name: cost(row[0]) for name, row in chosen.items() if not finished(folder / name, *row)}
    started, done = time.monotonic(), 0.0
    for n, (name, price) in enumerate(costs.items(), 1):
        spent, share = time.monotonic() - started, done / sum(costs.values())
        left = f", about {spent * (1 / share - 1) / 60:.0f} min left" if share else ""
        print(f"row {n} of {len(costs)}, {name}: {share:.0%} of the network calls are done{left}", flush=True)
        path, corruption = chosen[name]
        extra = [] if corruption is None else [f"--corruption={corruption}"]
        trainings.command("evaluate", str(folder / name), f"--config={path}", *extra)
        done += price


def results(folder: Path, name: str) -> dict:
    """What a row's run found."""
    return json.loads((folder / name / "results.json").read_text(encoding="utf-8"))


def page(folder: Path, name: str) -> list[Part]:
    """A row's table: every accuracy beside the published one of the same name, and what the run finds of itself."""
    found = results(folder, name)
    published = json.loads((CONFIGS / "published.json").read_text(encoding="utf-8")).get(name, {})
    head = ["system", "stage", "accuracy, 95 %", "null control", "worst of 10", "majority of 10", "images", "calls"]
    lines, sources = [], {}
    for row in found["rows"]:
        said = published.get(row["system"], {})
        cells = [row["system"], row["stage"], f"{tables.percent(row['accuracy'])} {tables.interval(row)}"]
        cells += map(tables.percent, (row["null"], row["worst_of"].get("10"), row["majority_of"].get("10")))
        cells += [str(row["images"]), f"{row['forward'] + row['backward']:,}"]
        if row["stage"] in said:
            sources[f"- {row['system']}: {said['source']}. {said['why']}"] = True
        lines.append([*cells, f"{said[row['stage']]:.2f}" if row["stage"] in said else "—"])
    said = ["\n".join(sources)] if sources else []
    return [Table([*head, "published"], lines), *said, *tables.findings(found)]


def corruptions(folder: Path, names: Iterable[str]) -> list[Part]:
    """One table for all corrupted rows: a line for each, a column for every system."""
    found = {name: results(folder, name)["rows"] for name in names}
    lines = {name.removeprefix("corruptions-"): [row["accuracy"] for row in rows] for name, rows in found.items()}
    lines["mean"] = [statistics.mean(column) for column in zip(*lines.values(), strict=True)]
    systems = [row["system"] for row in next(iter(found.values()))]
    return [Table(["corruption", *systems], [[name, *map(tables.percent, line)] for name, line in lines.items()])]


def detect(folder: Path) -> list[Part]:
    """How well attacked images are told from clean ones, measured if it has not been."""
    place = folder / DETECTED / "detection.json"
    if not place.exists() or place.stat().st_mtime < (place.parent / "results.json").stat().st_mtime:
        trainings.command("detect", str(place.parent), *DETECTOR)
    told = json.loads(place.read_text(encoding="utf-8"))
    lines = []
    for stage in told["stages"]:
        value, low, high = stage["found"]["auroc"]
        lines.append([stage["system"], stage["stage"], str(stage["images"]), f"{value:.3f} [{low:.3f}, {high:.3f}]"])
    return [Table(["attacked system", "stage", "images", "AUROC, 95 %"], lines)]


def bill(folder: Path, names: Iterable[str]) -> list[Part]:
    """What every row took, and all together, whether they ran in one call or in many."""
    found = {name: results(folder, name)["rows"] for name in names}
    found["all"] = [row for rows in found.values() for row in rows]
    lines = []
    for name, rows in found.items():
        passed = (f"{sum(row[way] for row in rows):,}" for way in ("forward", "backward"))
        lines.append([name, *passed, f"{sum(row['seconds'] for row in rows) / 60:.0f}"])
    return [Table(["row", "network calls forward", "backward", "minutes of a core"], lines)]


if __name__ == "__main__":
    place, names = Path(sys.argv[1]), sys.argv[2:]
    known = rows()
    if unknown := set(names) - set(known):
        sys.exit(f"There is no row {', '.join(sorted(unknown))}; choose from {', '.join(known)}.")
    asked = {name: known[name] for name in names or known}
    chosen = {name: asked[name] for name in possible(asked)}
    run(place, chosen)
    corrupted = [name for name, (_, corruption) in chosen.items() if corruption]
    made = {name: page(place, name) for name, (_, corruption) in chosen.items() if not corruption}
    made |= {"corruptions": corruptions(place, corrupted)} if corrupted else {}
    made |= {"detection": detect(place)} if DETECTED in chosen else {}
    made |= {"cost": bill(place, chosen)}
    print(*(f"## {name}\n\n{store.text(parts)}" for name, parts in made.items()), sep="\n\n")
    store.keep("cifar10", made)
