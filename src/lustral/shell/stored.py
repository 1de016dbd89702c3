"""What a run folder says: its results and options, as JSON. Read without what wrote them."""

import json
from pathlib import Path

from ..core.errors import UserError


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
    if not isinstance(found, dict) or not {"title", "seed", "data", "threat", "rows", "ordering"} <= found.keys():
        raise UserError(
            f"{folder / 'results.json'} holds no results of Lustral; run the evaluation again, which reuses its ledger."
        )
    return found


def read_json(place: Path, what: str) -> dict:
    """A JSON file of a run folder."""
    if not place.exists():
        if what == "options" and (place.parent / "ledger.sqlite").exists():
            raise UserError(
                f"There are no options in {place.parent}. A run of `lustral.assess` or the demo has none; this needs "
                "a run of `lustral evaluate` (in Python, lustral.verify(run, defences) verifies one of assess)."
            )
        who = "`lustral evaluate`" if what == "options" else "a finished `lustral evaluate` or `lustral demo`"
        raise UserError(f"There are no {what} in {place.parent}; {who} leaves them there.")
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{place} is damaged ({e}); run the evaluation again, which reuses its ledger.") from e
