"""What the witness saw while searches ran: the gradients that they followed, and whether the judge met the same system.

(evaluation checks 2, 5 and 10, in the run's own precision, through the deployed callable, at the search's own images)
"""

from collections.abc import Iterable

import numpy as np

from ..metrics import wilson
from ..witness import Probe
from .base import Evidence, Finding

NEAR = 0.8, 1.25
"""Measured over predicted change, between which a gradient is said to predict a step."""


def predicts(pairs: Iterable[tuple[float, float]]) -> list[bool]:
    """Where (predicted, measured) agree; two zeros do not count."""
    low, high = NEAR
    return [p != 0 and low <= m / p <= high for p, m in pairs if (p, m) != (0, 0)]


def hidden(slopes: Iterable[tuple[float, float, float]]) -> tuple[str, float]:
    """The level of slopes across the gradient, and the share that it does not foretell.

    Such a slope is further from what is predicted than half of its usual size, and than three times what slopes of two
    lengths differ by: a rough function, or rounding, is no false gradient.
    """
    told = [abs(measured - predicted) <= max(0.5, 3 * error) for predicted, measured, error in slopes]
    share = 1 - float(np.mean(told)) if told else 0.0
    least = wilson(share, len(told)).low if told else 0.0
    return "red" if least > 0.25 else "amber" if least > 0.05 else "green", share


def worse(one: str, other: str) -> str:
    """The worse of two levels."""
    return max(one, other, key=LEVELS.index)


LEVELS = "green", "amber", "red"


def capped(e: Evidence, level: str) -> str:
    """Probabilities bend so much that a step in them is no proof; the finding ``logits`` speaks of them."""
    return "amber" if level == "red" and e.probabilities else level


def of_kind(e: Evidence, kind: str) -> dict[str, list[Probe]]:
    """Probes of one kind, of every stage that has some."""
    found = {stage: [probe for probe in probes if probe.kind == kind] for stage, probes in e.probes.items()}
    return {stage: probes for stage, probes in found.items() if probes}


def followed_gradient(e: Evidence) -> Finding | None:
    """2, 5: does the gradient that a search follows predict what its step does, there and then?

    All searches together, those within the threat of the number together, and each alone.
    """
    held = {stage: predicts(probe[3:5] for probe in probes) for stage, probes in of_kind(e, "step").items()}
    held = {stage: found for stage, found in held.items() if found}
    if not held:
        return None
    every = [one for found in held.values() for one in found]
    near = [one for stage, found in held.items() if _near(stage) for one in found]
    share, shares = float(np.mean(every)), {stage: float(np.mean(found)) for stage, found in held.items()}
    worst = min(shares, key=shares.get)
    red = _most(every) < 0.75 or _most(near) < 0.75 or min(map(_most, held.values())) < 0.6
    level = "red" if red else "green" if share >= 0.9 and shares[worst] >= 0.5 else "amber"
    text = f"At {len(every)} looks of {len(held)} searches the gradient predicts the change along the next step "
    text += f"in {share:.0%}; least often in {worst} ({shares[worst]:.0%} of {len(held[worst])})."
    slopes = [probe[3:6] for probes in of_kind(e, "across").values() for probe in probes]
    across, unseen = hidden(slopes)
    if slopes:
        text += f" Of {len(slopes)} slopes along random signs it does not foretell {unseen:.0%}."
    return Finding(capped(e, worse(level, across)), share, text)


def _near(stage: str) -> bool:
    """Whether a stage is within the threat of the number: no point of the curve, and not without bounds."""
    return "@eps" not in stage and stage != "unbounded"


def _most(held: list[bool]) -> float:
    """What share of predictions at most holds, by Wilson's interval; all where there are none."""
    return wilson(float(np.mean(held)), len(held)).high if held else 1.0


def path_integral(e: Evidence) -> Finding | None:
    """2, 5: do gradients on the way from a clean image to another one add up to the change of the margin?"""
    routes = {stage: [probe[3:6] for probe in probes] for stage, probes in of_kind(e, "path").items()}
    routes |= {"the certificate": e.certificate["ways"]} if e.certificate.get("ways") else {}
    missing = {}
    for place, found in routes.items():
        predicted, measured, error = np.array(found, dtype=float).T
        length = np.abs(measured).sum()
        if length > 0 or np.abs(predicted).sum() > 0:
            off = float(((predicted - measured) * np.sign(measured)).sum() / max(length, 1e-12))
            missing[place] = off, float(np.sqrt((error**2).sum()) / max(length, 1e-12))
    if not missing:
        return None
    levels = {place: _apart(*found) for place, found in missing.items()}
    worst = max(missing, key=lambda place: (levels[place], abs(missing[place][0])))
    off, error = missing[worst]
    level = capped(e, ("green", "amber", "red")[levels[worst]])
    text = (
        f"From clean images to candidates, gradients add up to {1 + off:.2f} ± {error:.2f} of the change of the margin "
    )
    return Finding(level, off, text + f"in {worst}, the furthest of {len(missing)} searches from 1.")


def _apart(off: float, error: float) -> int:
    """0, 1 or 2: how surely what is missing of a change is more than where the points fell."""
    if not np.isfinite(off) or not np.isfinite(error):
        return 2
    return int(abs(off) > max(0.2, 4 * error)) + int(abs(off) > max(0.5, 6 * error))


def asked_alike(e: Evidence) -> Finding | None:
    """10: search and judge get the same answer to the same question, and the same kind of noise."""
    apart = [probe.measured for probes in of_kind(e, "asked").values() for probe in probes]
    luck = e.certificate.get("places")
    if not apart and luck is None:
        return None
    most = float(np.max(apart)) if apart else 0.0  # not a number, if one of them is none
    red = not most < 1e-2 or (luck is not None and luck < 1e-3)
    level = "red" if red else "green" if most <= 1e-4 and (luck is None or luck >= 0.01) else "amber"
    text = f"Asked the same on the same noise, search and judge get logits that differ by {most:.1e} of their size"
    if luck is not None:
        text += (
            f"; margins on noise of an attack and of a judge differ as much by chance with a probability of {luck:.2g}"
        )
    return Finding(level, most, text + ".")


CHECKS = {
    "followed-gradient": followed_gradient,
    "path-integral": path_integral,
    "asked-alike": asked_alike,
}
