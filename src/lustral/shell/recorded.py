"""What a ledger says of its run by itself: stages, threats, votes and clean images, without any network."""

from typing import NamedTuple

from ..core import threat as threats
from ..core import vote as votes
from ..core.errors import UserError
from ..core.threat import Threat
from ..core.vote import Vote
from ..evaluate.protocol import Data
from .ledger import Ledger


class Recorded(NamedTuple):
    """One stage of one system; ``threat`` as the run's spec has it; images that were decided may ``leave`` it."""

    system: str
    stage: str
    threat: dict | None
    vote: Vote
    leave: bool


def stages(ledger: Ledger) -> list[Recorded]:
    """All stages of a run, in order."""
    spec = ledger.spec()
    how = {name: made(about["vote"]) for name, about in spec["systems"].items()}
    return [
        Recorded(
            job["system"], job["stage"]["name"], _threat(job["stage"]), how[job["system"]], bool(job["stage"]["after"])
        )
        for job in spec["jobs"]
    ]


def clean(ledger: Ledger) -> Data | None:
    """The images of the run that its clean stage is done with, by their ids; None where it has no such stage."""
    held = [each.system for each in stages(ledger) if each.stage == "clean" and ledger.done(each.system, "clean")]
    if not held:
        return None
    found = ledger.outcomes(max(held, key=lambda name: len(ledger.done(name, "clean"))), "clean")
    return Data(found.ids, found.x, found.y)


def threat(ledger: Ledger) -> Threat:
    """The threat that a run of a suite is about: that of its worst case."""
    return made(next(each.threat for each in stages(ledger) if each.stage == "worst"))


def _threat(stage: dict) -> dict | None:
    """The threat of a stage, or of the innermost search of its attack."""
    if stage.get("threat") is not None:
        return stage["threat"]
    inner = (part for part in stage.values() if isinstance(part, dict))
    return next((found for part in inner if (found := _threat(part)) is not None), None)


KNOWN = {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (
        *(votes.Single, votes.MeanLogits, votes.MeanSoftmax, votes.Majority, votes.Abstain),
        *(threats.Linf, threats.L2, threats.L1),
    )
}


def made(spec: dict) -> Vote | Threat:
    """The vote or the threat that a spec describes; those of a user's own are not made from it."""
    if spec["type"] not in KNOWN:
        raise UserError(f"This run has a {spec['type']} of its own, which only your own program can make.")
    given = {name: made(part) if isinstance(part, dict) else part for name, part in spec.items() if name != "type"}
    return KNOWN[spec["type"]](**given)
