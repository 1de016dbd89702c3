"""``lustral tune``: settings of a purifier on validation images: what they keep, what they cost, which are worth it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import yaml
from matplotlib.figure import Figure

from ..core.errors import UserError
from . import commands, standard, weights
from .files import replacing, write_text
from .options import Classification, Entry, Evaluation, Grid, Precision, Purification, Resources, Search, ThreatModel
from .systems import check


class Setting(NamedTuple):
    """One setting: clean and robust accuracy (value, low, high), and network calls for a decision."""

    name: str
    clean: tuple[float, float, float]
    robust: tuple[float, float, float]
    calls: float
    best: bool = False


def grid(base: Purification, over: Grid) -> dict[str, Purification]:
    """Every combination of the values, by a name that says them."""
    axes = {name: values for name, values in asdict(over).items() if values}
    if not axes:
        raise UserError("Say what to tune over, for example --over.t_star=[0.05,0.1,0.2].")
    check(base, axes)
    made = {}
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        name = ", ".join(f"{key}={value:g}" for key, value in chosen.items())
        made[name] = replace(base, **chosen)
    return made


def run(
    out: Path,
    data: str,
    images: int,
    over: Grid,
    purification: Purification,
    classification: Classification,
    threat: ThreatModel,
    search: Search,
    draws: int,
    seed: int,
    precision: Precision,
    resources: Resources,
) -> list[Setting]:
    """Evaluates every setting on validation images into ``out``, and leaves a plot and a YAML of the best there."""
    purification, classification = standard.system(purification, classification, data)
    threat = standard.threat(threat, data)
    settings = grid(purification, over)
    systems = {name: Entry(how) for name, how in settings.items()}
    stages = ["clean", "exact"]
    options = Evaluation(
        *(data, images, None, stages, systems, purification, classification, threat, search, draws, seed, 64),
        split="validation",
        precision=precision,
    )
    found = commands.evaluate(options, out, resources, None, None, allow_red=True)
    made = with_front(list(read(found, classification.draws)))
    top = chosen(made)
    write_text(out / "best.yaml", describe(top.name, settings[top.name], options))
    _draw(out / "tune.png", made)
    return made


def chosen(settings: Sequence[Setting]) -> Setting:
    """The most robust of the settings that no other one beats."""
    return max((s for s in settings if s.best), key=lambda s: s.robust[0])


def read(found: dict, draws: int) -> Iterator[Setting]:
    """The settings of a run's results, whose decisions are made of so many draws."""
    rows = {(row["system"], row["stage"]): row for row in found["rows"] if row["group"] in ("main", "attack")}
    for name in dict.fromkeys(system for system, _ in rows):
        clean, robust = (rows[name, stage] for stage in ("clean", "exact"))
        accuracies = ((row["accuracy"], row["low"], row["high"]) for row in (clean, robust))
        yield Setting(name, *accuracies, draws * clean["forward"] / (clean["attacked"] * clean["draws"]))


def with_front(settings: list[Setting]) -> list[Setting]:
    """Marks those that no other one beats: at least as accurate, clean and robust, for at most as many calls."""

    def beats(a: Setting, b: Setting) -> bool:
        better = a.clean[0] >= b.clean[0], a.robust[0] >= b.robust[0], a.calls <= b.calls
        return all(better) and (a.clean[0], a.robust[0], a.calls) != (b.clean[0], b.robust[0], b.calls)

    return [s._replace(best=not any(beats(other, s) for other in settings)) for s in settings]


def describe(name: str, how: Purification, options: Evaluation) -> str:
    """A configuration for ``lustral evaluate``, which will measure the setting on test images."""
    changed = {key: value for key, value in asdict(how).items() if value != getattr(Purification(), key)}
    said = {
        "data": options.data,
        "threat": asdict(options.threat),
        "purification": changed,
        "classification": asdict(options.classification),
        "precision": options.precision,
    }
    title = f"# {name}: the most robust setting on {options.images} validation images that no other one beats\n"
    return title + yaml.safe_dump(json.loads(json.dumps(said)), sort_keys=False)


def seen_before(how: Purification, judge: Classification, data: str) -> list[str]:
    """Networks that were trained on the validation images too: on them a setting looks better than it is."""
    how, judge = standard.system(how, judge, data)
    names = [judge.classifier] + ([how.denoiser] if how.method != "none" else [])
    cards = [weights.card(weights.find(name)) for name in names]
    return [
        about.name
        for about in cards
        if about.data == data and about.recipe.get("images", {}).get("split", "train") == "train"
    ]


def _draw(path: Path, settings: list[Setting]) -> None:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, across in ((left, lambda s: s.clean[0]), (right, lambda s: s.calls)):
        for s in settings:
            value, low, high = s.robust
            style = {"color": "C0", "marker": "o"} if s.best else {"color": "0.6", "marker": "."}
            axis.errorbar(across(s), value, [[value - low], [high - value]], capsize=2, linestyle="", **style)
            if s.best:
                axis.annotate(s.name, (across(s), value), fontsize=7, xytext=(4, 4), textcoords="offset points")
    left.set(xlabel="clean accuracy", ylabel="accuracy under the exact attack", title="filled: beaten by no other")
    right.set(xlabel="network calls for a decision", xscale="log")
    with replacing(path) as scratch:
        figure.savefig(scratch, format="png", dpi=120)
