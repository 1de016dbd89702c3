"""What a run folder says: its results and options, as JSON. Read without what wrote them."""

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..core.errors import UserError
from . import limits
from .files import parsed
from .options import Evaluation
from .shape import wrong

NUMBER, WHOLE, COUNT, TEXT, FLAG, TWO, THREE = (
    *("a number", "a whole number", "a count", "a text", "true or false", "two numbers", "three numbers"),
)
SOME, SAID = (NUMBER, None), (TEXT, None)
FOLDED = {"#": SOME}
ROW = {
    **{"system": TEXT, "stage": TEXT, "group": TEXT, "accuracy": NUMBER, "low": NUMBER, "high": NUMBER, "null": SOME},
    **{"images": COUNT, "attacked": COUNT, "draws": COUNT, "looks": WHOLE, "eot": (WHOLE, None), "seconds": NUMBER},
    **{"forward": WHOLE, "backward": WHOLE, "x?": SOME, "eps?": SOME, "norm?": SAID, "held?": FLAG, "vote?": TEXT},
    **{"worst_of?": FOLDED, "majority_of?": FOLDED, "mean_logit_of?": FOLDED, "single_draw?": THREE},
    **{"gradient?": SAID, "search?": SAID, "loss?": SAID, "knowledge?": SAID, "steps?": SOME, "restarts?": SOME},
    **{"null_looked?": {"looks": WHOLE, "accuracy": NUMBER}, "repaired?": WHOLE, "max_distance?": SOME},
    **{"selection?": SOME, "targets?": SOME},
}
RISKS = [{"rule": TEXT, "k": COUNT, "m": COUNT, "accuracy": THREE}]
POINT = {"stage": TEXT, "forward": NUMBER, "backward": NUMBER, "accuracy": NUMBER}
DETAIL = {
    **{"stage": TEXT, "risks?": RISKS, "clean_risks?": RISKS, "bootstrap?": THREE, "sequence?": THREE},
    **{"published?": [{"source": TEXT, "name": TEXT, "definition": TEXT, "value": (THREE, None)}]},
    **{"per_class?": {"#": THREE}, "draws_right": [COUNT], "cost_curve?": [POINT]},
}
PAIRED = {"a": TEXT, "b": TEXT, "stage": TEXT, "only_a": WHOLE, "only_b": WHOLE, "p": NUMBER}
PAIRED |= {"difference?": (THREE, None), "p_flip?": NUMBER}
FINDING = {"level": TEXT, "name": TEXT, "text": TEXT, "so?": SAID, "value?": SOME}
CLAIM = {"system": TEXT, "claim": TEXT, "holds": (FLAG, None), "values": [NUMBER], "images?": COUNT, "chance?": FLAG}
BINARISED = {"images?": COUNT, "attack?": SOME, "chance?": SOME}
MEASURED = {
    "steps?": COUNT,
    "agreement?": ([TWO], None),
    "binarisation?": (BINARISED, None),
    "*": (NUMBER, FLAG, TEXT, None, [(NUMBER, [SOME], None)]),
}
RESULTS = {
    **{"title": TEXT, "seed": "anything", "rows": [ROW], "ordering": [CLAIM], "lustral?": TEXT, "command?": TEXT},
    **{"data": {"name?": TEXT, "images": COUNT, "split?": TEXT, "sha256?": TEXT, "classes?": [TEXT]}},
    **{"threat": {"norm": TEXT, "eps": NUMBER, "why?": SAID}, "suite?": SAID, "precision?": SAID, "seconds?": SOME},
    **{"paired?": [PAIRED], "findings?": {"*": [FINDING]}, "withheld?": {"*": [TEXT]}, "details?": {"*": DETAIL}},
    **{"certificates?": {"*": (MEASURED, None)}, "caveats?": [TEXT], "notes?": [TEXT], "about?": {"*": TEXT}},
    **{"versions?": {"*": TEXT}, "random?": {"*": (FLAG, None)}, "run?": TEXT, "ledger_digest?": TEXT},
}
"""What commands read of results.json, as a sketch (``shape``)."""

OPTIONS = {"purification": {}, "classification": {}, "threat": {}, "search": {}}
"""What options have in any case, as another."""


def check(*folders: Path) -> None:
    """Refuses folders that are not there."""
    for folder in folders:
        if not folder.is_dir():
            raise missing(folder)


def missing(folder: Path) -> UserError:
    """The error where a run should be and is not."""
    return UserError(f"There is no run at {folder}; it has no ledger.sqlite. Check the path.")


def results(folder: Path) -> dict:
    """The results of a run."""
    found = read_json(folder / "results.json", "results")
    said = wrong(found, RESULTS) or _unplaced(found)
    if said:
        raise UserError(
            f"{folder / 'results.json'} holds no results of Lustral ({said}); run the evaluation again, which reuses "
            "its ledger."
        )
    return found


def _unplaced(found: dict) -> str:
    """Which row is a point of a curve and has no place on it."""
    curves = [row for row in found["rows"] if row["group"] in ("eps", "t_star") or row["stage"] == "exact"]
    lacking = [row for row in curves if row.get("eps" if row["stage"] == "exact" else "x") is None]
    return f"{lacking[0]['stage']} of {lacking[0]['system']} lacks its eps or x" if lacking else ""


def read_json(place: Path, what: str) -> dict:
    """A JSON file of a run folder; options are held against what ``lustral evaluate`` takes."""
    if not place.exists():
        if what == "options" and (place.parent / "ledger.sqlite").exists():
            raise UserError(
                f"There are no options in {place.parent}. A run of `lustral.assess` or the demo has none; this needs "
                "a run of `lustral evaluate` (in Python, lustral.verify(run, defences) verifies one of assess)."
            )
        who = "`lustral evaluate`" if what == "options" else "a finished `lustral evaluate` or `lustral demo`"
        raise UserError(f"There are no {what} in {place.parent}; {who} leaves them there.")
    try:
        found = parsed(place)
    except ValueError as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{place} is damaged ({e}); run the evaluation again, which reuses its ledger.") from e
    if what == "options":
        _check_options(found, place)
    return found


def _check_options(found: object, place: Path) -> None:
    from . import config

    try:
        if said := wrong(found, OPTIONS) or _null(found, Evaluation):
            raise UserError(said)
        limits.check(config.parser().parse_object(_set(found)))
    except (config.ArgumentError, UserError) as e:
        raise UserError(f"{place} is of another version of Lustral or damaged ({' '.join(str(e).split())}).") from e


def _null(found: dict, kind: type) -> str:
    """Which option is null and must not be."""
    kinds = get_type_hints(kind)
    for name, value in found.items():
        allowed = get_args(kinds.get(name)) or (kinds.get(name),)
        if value is None and name in kinds and type(None) not in allowed:
            return f"{name} must not be null"
        inner = next((one for one in allowed if is_dataclass(one)), None)
        if inner is not None and isinstance(value, dict) and (said := _null(value, inner)):
            return said
    return ""


def _set(found: Any) -> Any:
    """Options without those that are null, which the parser knows as left out."""
    if isinstance(found, dict):
        return {name: _set(value) for name, value in found.items() if value is not None}
    return found
