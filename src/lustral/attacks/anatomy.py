"""What an attack is made of, for tables and for the estimate of the time left."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from ..core.adjoint import Checkpointed, Direct, Identity, Skip, Surrogate
from ..core.purifier import Purifier
from .composed import Targeted, Transfer
from .deviated import Deviated
from .estimators import SPSA, Growing, SignVoted
from .foreign import Foreign
from .gradients import Gradient, Selection
from .levels import HeldLevel, LoweredNorm
from .search import Restarts

ADJOINTS = {
    Checkpointed: "exact",
    Direct: "exact",
    type(None): "exact",
    Identity: "BPDA",
    Skip: "classifier only",
    Surrogate: "surrogate",
    Deviated: "exact + deviation",
    HeldLevel: "exact, level held",
    LoweredNorm: "exact + score norm",
}


def inside(attack: object) -> Iterator[object]:
    """An attack and all that it is composed of; sources of a transfer, victims and purifiers are no part of it."""
    yield attack
    for field in fields(attack):
        part = getattr(attack, field.name)
        if is_dataclass(part) and not isinstance(part, type | Purifier):
            yield from inside(part)


def find(attack: object, name: str) -> object | None:
    """The first value that a part gives to a field of that name."""
    for part in inside(attack):
        if any(field.name == name for field in fields(part)):
            return getattr(part, name)
    return None


def gradient_name(attack: object) -> str:
    """How the attack gets its direction."""
    if isinstance(attack, Transfer | Foreign):
        return "of other victims" if isinstance(attack, Transfer) else "of another library"
    for part in inside(attack):
        if isinstance(part, Gradient):
            return ADJOINTS.get(type(part.adjoint), type(part.adjoint).__name__)
        if isinstance(part, SPSA):
            return "queries (SPSA)"
        if isinstance(part, Growing):
            return f"{ADJOINTS.get(type(part.adjoint), type(part.adjoint).__name__)}, EOT {part.least} to {part.most}"
    return "none (queries)"


def effort(attack: object) -> float:
    """Decisions that an image may cost, a gradient counted as three."""
    if isinstance(attack, Restarts):
        return attack.times * effort(attack.search)
    if isinstance(attack, Targeted):
        return attack.targets * effort(attack.search) + attack.select.draws
    if isinstance(attack, Transfer):
        return len(attack.sources) * (effort(attack.search) + attack.select.draws)
    return attack.looks * sum(_per_look(part) for part in inside(attack))


def _per_look(part: object) -> float:
    if isinstance(part, Gradient):
        return part.eot * (1 if isinstance(part.adjoint, Identity) else 0.1 if isinstance(part.adjoint, Skip) else 3)
    if isinstance(part, Growing):
        return 6.0 * part.least
    if isinstance(part, SPSA):
        return 2.0 * part.samples
    return float(part.draws) if isinstance(part, Selection) else 0.0


def summary(attack: object) -> dict:
    """An attack as a line of a table."""
    loss, growing = find(attack, "loss"), next((p for p in inside(attack) if isinstance(p, Growing | SignVoted)), None)
    select = next((p for p in inside(attack) if isinstance(p, Selection)), None)
    return {
        "search": " of ".join(
            type(p).__name__ for p in inside(attack) if type(p).__module__ != Gradient.__module__ and hasattr(p, "run")
        ),
        "gradient": gradient_name(attack),
        "loss": getattr(loss, "__name__", None),
        "steps": find(attack, "steps") or find(attack, "queries"),
        "eot": growing.most if isinstance(growing, Growing) else find(attack, "eot"),
        "selection": select.draws if select else 0,
        "restarts": next((p.times for p in inside(attack) if isinstance(p, Restarts)), 1),
        "targets": find(attack, "targets"),
        "looks": attack.looks,
    }
