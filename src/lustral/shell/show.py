"""What people read in the terminal."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from ..core.errors import UserError
from ..evaluate.sizes import SIZES
from . import cards, config
from .names import METHODS
from .options import Solver, StageName, VoteName
from .streams import Screen

if TYPE_CHECKING:  # these load torch, which a list of names does not need
    from ..evaluate.detection import Seen
    from .controls import Caught
    from .tune import Setting

# Wide enough for the table where the output is a pipe or a file.
out = Screen() if Screen().is_terminal else Screen(width=140)


def table(found: dict) -> None:
    """The results of a run, what it finds of itself, and what that withholds."""
    threat, images = found["threat"], found["data"]["images"]
    asked = [found[name] for name in ("precision", "suite") if found.get(name)]
    facts = [f"{threat['norm']} eps = {threat['eps']:g}", f"{images} images", f"seed {found['seed']}", *asked]
    title = f"{found['title']}: {', '.join(facts)}"
    sheet = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("system", "stage"):
        sheet.add_column(name, no_wrap=True)
    for name in (
        "accuracy",
        "95 %",
        "null",
        "at looks",
        "images",
        "draws",
        "EOT",
        "looks",
        "seconds",
        "forward",
        "backward",
    ):
        sheet.add_column(name, justify="right", no_wrap=True)
    for row in found["rows"]:
        if row["group"] in ("main", "attack"):
            sheet.add_row(*_cells(row))
    out.print(sheet)
    for claim in found["ordering"]:
        values = ", ".join(f"{value:.1%}" for value in claim["values"])
        kept = "holds, within chance" if claim.get("chance") else "holds" if claim["holds"] else "FAILS"
        out.print(f"{kept}: {claim['system']}: {claim['claim']} ({values})", highlight=False)
    for system, said in found.get("findings", {}).items():
        for finding in said:
            if finding["level"] != "green":
                line(f"{finding['level']}: {system}: {finding['name']}: {finding['text']}")
    for caveat in found.get("caveats", []):
        line(caveat)
    for system, names in found.get("withheld", {}).items():
        shown = any(row.get("held") for row in found["rows"] if row["system"] == system)
        line(f"{'MARKED' if shown else 'WITHHELD'}: the robust accuracy of {system}, because of {', '.join(names)}.")
    from .verdict import sentence

    line(sentence(found))


def _cells(row: dict) -> list[str]:
    null = "—" if row["null"] is None else f"{row['null']:.1%}"
    looked = f"{row['null_looked']['accuracy']:.1%}" if row.get("null_looked") else "—"
    left = row["images"] if row["attacked"] == row["images"] else f"{row['attacked']} of {row['images']}"
    counts = str(left), str(row["draws"]), str(row["eot"] or "—"), str(row["looks"])
    mark = "*" if row.get("held") else ""
    return [
        row["system"],
        row["stage"],
        f"{row['accuracy']:.1%}{mark}",
        f"{row['low']:.0%}–{row['high']:.0%}",
        null,
        looked,
        *counts,
        f"{row['seconds']:.1f}",
        f"{row['forward']:,}",
        f"{row['backward']:,}",
    ]


def comparison(found: list[dict]) -> None:
    """Paired tests between two runs."""
    sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "a", "b"):
        sheet.add_column(name, overflow="fold")  # long names fold, so that no figure is cut
    for name in ("images", "a %", "b %", "a − b", "95 %", "flip p", "only a/b", "McNemar p"):
        sheet.add_column(name, justify="right", no_wrap=True)
    for test in found:
        value, low, high = test["difference"]
        numbers = f"{test['accuracy_a']:.1%}", f"{test['accuracy_b']:.1%}", f"{100 * value:+.1f}"
        interval, only = f"{100 * low:+.1f} to {100 * high:+.1f}", f"{test['only_a']}/{test['only_b']}"
        flip, p = f"{test['p_flip']:.3g}", f"{test['p']:.3g}"
        sheet.add_row(test["stage"], test["a"], test["b"], str(test["images"]), *numbers, interval, flip, only, p)
    out.print(sheet)
    last = "worst" if any(test["stage"] == "worst" for test in found) else found[-1]["stage"]
    for test in found:
        if test["stage"] == last:
            line(_reading(test))
    for test in found:
        if test["unlike"]:
            line(f"{test['stage']}: {test['a']} and {test['b']} were not attacked alike: {', '.join(test['unlike'])}.")


def _reading(test: dict) -> str:
    """What a paired test says, in a sentence."""
    value, low, high = test["difference"]
    better = test["a" if value > 0 else "b"]
    clear = (low > 0 or high < 0) and test["p_flip"] < 0.05
    said = f"{better} is better by {100 * abs(value):.1f} points" if clear else "no clear difference"
    return f"{test['a']} and {test['b']} under {test['stage']}: {said}."


def detection(seen: list["Seen"]) -> None:
    """How well every stage's candidates were told from the clean images."""
    sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("system", "stage"):
        sheet.add_column(name, overflow="fold")
    for name in ("images", "AUROC", "95 %", "caught at 5 % false alarms", "95 %"):
        sheet.add_column(name, justify="right", no_wrap=True)
    for s in seen:
        area, caught = s.found.auroc, s.found.caught
        numbers = f"{area.value:.3f}", f"{area.low:.3f}–{area.high:.3f}"
        shares = f"{caught.value:.1%}", f"{caught.low:.0%}–{caught.high:.0%}"
        sheet.add_row(s.system, s.stage, str(s.images), *numbers, *shares)
    out.print(sheet)


def controls(found: list["Caught"]) -> bool:
    """What caught each control; whether all are as they must be."""
    for control in found:
        unseen = "not seen by this suite, where a page without red is no evidence"
        by = ", ".join(control.red) or (unseen if control.unseen else "no red finding")
        line(f"{'as it must be' if control.holds else 'WRONG'}: {control.name}: {by}")
    wrong = sum(not control.holds for control in found)
    line(f"{wrong} of {len(found)} controls are WRONG." if wrong else f"All {len(found)} controls are as they must be.")
    return not wrong


def places(folder: Path) -> None:
    """Where a run's results are."""
    for name in ("report.html", "results.json", "ledger.sqlite"):
        done(folder / name)


def done(path: Path) -> None:
    """Where something was written."""
    out.print(f"→ {path}", soft_wrap=True, highlight=False)


def line(text: str) -> None:
    """One sentence."""
    out.print(text, soft_wrap=True, highlight=False)


def settings(made: list, seen: list[str]) -> None:
    """What tuning found; a star marks the settings that no other one beats."""
    sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    sheet.add_column("setting", no_wrap=True)
    for name in ("clean", "95 %", "exact", "95 %", "calls", ""):
        sheet.add_column(name, justify="right", no_wrap=True)
    for one in made:
        shares = [cell for v, low, high in (one.clean, one.robust) for cell in (f"{v:.1%}", f"{low:.0%}–{high:.0%}")]
        sheet.add_row(one.name, *shares, f"{one.calls:.0f}", "*" if one.best else "")
    out.print(sheet)
    if seen:
        line(f"amber: {', '.join(seen)}: trained on the validation images too (--split fit leaves them out).")


def chosen(one: "Setting", images: int) -> None:
    """The setting that tuning chose, in a sentence."""
    line(
        f"{one.name} is the most robust setting that no other one beats: {one.robust[0]:.1%} under the exact attack "
        f"and {one.clean[0]:.1%} without, on {images} validation images, at {one.calls:.0f} network calls a decision."
    )


def card(about: cards.Card) -> None:
    """A card, as JSON."""
    for row in json.dumps(asdict(about), indent=2, ensure_ascii=False).split("\n"):
        out.print(row, soft_wrap=True)


def trained(about: cards.Card) -> None:
    """What was measured of a network, in one line; its card says the rest."""
    line(f"{about.name}, a {about.kind} of {_facts(about)}")


def _facts(about: cards.Card) -> str:
    measured = ", ".join(f"{name} {value:g}" for name, value in about.measured.items())
    return f"{about.parameters:,} parameters, {about.data}: {measured}"


def names() -> None:
    """Everything that has a name."""
    for name, path in cards.zoo().items():
        try:
            about = cards.card(path)
        except UserError as e:
            line(f"{'unreadable':<12}{name:<18}{e}")
            continue
        line(f"{about.kind:<12}{name:<18}{_facts(about)}")
    for name, path in config.recommended().items():
        line(f"{'recommended':<12}{name:<18}{path}")
    for name, about in METHODS.items():
        line(f"{'method':<12}{name:<18}{about}")
    line(f"{'wrapper':<12}{'ssni':<18}each image's own noise level, from its score norm (Sun et al. 2025)")
    for kind, values in (("solver", Solver), ("vote", VoteName)):
        line(f"{kind:<12}{', '.join(values.__args__)}")
    line(f"{'suite':<12}{', '.join(SIZES)}")
    line(f"{'stage':<12}{', '.join(StageName.__args__)}")
