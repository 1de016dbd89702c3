"""Runs that go on with more images: what was done stays, as what is done with an image depends on that image alone."""

import json
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.spec import differences
from ..core.spec import spec as described
from ..evaluate.protocol import Data


def grows(old: dict, new: dict, data: Data) -> bool:
    """Whether a run is the same as an earlier one but for images of ``data`` after those that it had."""
    count = images(old)
    if not count < len(data.ids) or _rest(old) != _rest(new):
        return False
    first = {"ids": data.ids[:count], "x": data.x[:count], "y": data.y[:count]}
    more = all(a["images"] <= b["images"] for a, b in zip(old["jobs"], new["jobs"], strict=True))
    return more and json.loads(json.dumps(described(first))) == old["data"]


def refusal(folder: Path, old: dict, new: dict) -> UserError:
    """Why a run cannot go on in the folder of an earlier one."""
    if images(new) < images(old) and _rest(old) == _rest(new):
        return UserError(
            f"{folder} holds {images(old)} images of this run already, more than the {images(new)} asked for; ask for "
            "at least as many, or choose another folder."
        )
    lines = differences(old, new)
    rest = f"; and {len(lines) - 5} more." if len(lines) > 5 else "."
    return UserError(
        f"{folder} holds another run; choose another folder or delete it. It differs in {'; '.join(lines[:5])}{rest}"
    )


def images(of: dict) -> int:
    """How many images a run is of, from its spec."""
    return of["data"]["ids"]["shape"][0] if "data" in of else 0


def _rest(of: dict) -> dict[str, Any]:
    """A spec without its images and their numbers."""
    jobs = [{name: part for name, part in job.items() if name != "images"} for job in of["jobs"]]
    return json.loads(json.dumps(of | {"data": None, "jobs": jobs}))
