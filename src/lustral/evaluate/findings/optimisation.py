"""Did the attacks search well enough? (evaluation checks 15 to 21)"""

from itertools import pairwise
from math import inf

import numpy as np

from ..metrics import wilson
from .base import RED, Evidence, Finding, bar, difference, measured, points

FEW = 8
"""Decisions at a look from which on all of them being wrong is no accident."""


def converged(e: Evidence) -> Finding | None:
    """15: the best loss must not still rise in the last tenth of the looks."""
    name = e.main()
    if name is None:
        return None
    seen, late = e.stages[name], []
    for losses, wrong in zip(seen.losses, seen.wrong.tolist(), strict=True):
        if len(losses) >= 10 and wrong < 1:  # an image that left because it was broken needs no more gain
            best = np.maximum.accumulate(losses)
            late.append((best[-1] - best[int(0.9 * (len(best) - 1))]) / max(best[-1] - best[0], 1e-12))
    if not late:
        return None
    return bar(
        float(np.mean(late)), 0.05, inf, f"The last tenth of {name} brings {np.mean(late):.1%} of its gain in loss."
    )


def attacks_agree(e: Evidence) -> Finding | None:
    """16: if the worst case over attacks is far below the best single attack, no single one searches well enough.

    The worst case judged anew: a minimum over noisy shares would lie below every one of them by chance.
    """
    first, worst = e.stages.get("apgd-margin"), e.stages.get("worst")
    found = difference(first, worst) if first is not None and worst is not None else None
    if found is None:
        return None
    return bar(found.value, 0.1, inf, f"apgd-margin alone leaves {points(found)} more than the worst of all attacks.")


def silent_success(e: Evidence) -> Finding | None:
    """17: images that were wrong in every draw at some look, while the candidate handed in is mostly right.

    Where a look is at few decisions, all of them are wrong at some look by chance, and that says nothing.
    """
    name = e.main()
    if name is None or (e.random and e.eot < FEW):
        return None
    seen = e.stages[name]
    fooled = [len(w) > 0 and w.max() == 1 for w in seen.wrongs]
    lost = [bool(f) and right >= 0.5 for f, right in zip(fooled, seen.right.tolist(), strict=True)]
    share = sum(lost) / len(lost)
    return bar(
        share, 0.1, inf, f"{share:.1%} of images were fooled at some look of {name} but are mostly right in the end."
    )


def roughness(e: Evidence) -> Finding | None:
    """18: a loss that changes wildly along random directions hides its gradient."""
    return measured(e, "roughness", 1.0, inf, "Random signs of full size change the margin by {:.0%}.")


def unbounded(e: Evidence) -> Finding | None:
    """19: an attack that may do nearly anything must leave no more than chance."""
    seen = e.stages.get("unbounded")
    if seen is None:
        return None
    estimate, chance = wilson(seen.accuracy, len(seen.ids)), 1 / e.classes
    level = "red" if estimate.low > chance else "amber" if estimate.value > chance else "green"
    return Finding(
        level, estimate.value, f"An attack almost without bounds leaves {estimate.value:.1%} (chance is {chance:.0%})."
    )


def monotone_curve(e: Evidence) -> Finding | None:
    """20: more freedom for the attacker must not raise accuracy."""
    curve = {float(name.partition("=")[2]): seen for name, seen in e.stages.items() if name.startswith("exact@eps=")}
    if "exact" in e.stages:
        curve[e.eps] = e.stages["exact"]
    if len(curve) < 3:
        return None
    at = sorted(curve)
    gaps = [difference(curve[b], curve[a]) for a, b in pairwise(at)]
    steepest = max((gap for gap in gaps if gap is not None), key=lambda gap: gap.value)
    level = "red" if steepest.value > 0 and steepest.above < RED else "amber" if steepest.value > 0.05 else "green"
    return Finding(
        level, steepest.value, f"Over {len(at)} sizes of eps the largest rise of accuracy is {points(steepest)}."
    )


def binarisation(e: Evidence) -> Finding | None:
    """21: an adversarial example that is known to exist must be found."""
    found = e.certificate.get("binarisation")
    if not found or not found["images"]:
        return None
    rate, images = found["attack"], found["images"]
    powerful = found["chance"] < wilson(rate, images).low  # where random signs find as many, finding them proves little
    level = "red" if wilson(rate, images).high < 0.75 else "green" if rate >= 0.95 and powerful else "amber"
    text = f"The attack finds {rate:.0%} of {images} adversarial examples that exist by construction"
    text += f"; random signs find {found['chance']:.0%}."
    return Finding(level, rate, text)


CHECKS = {
    "converged": converged,
    "attacks-agree": attacks_agree,
    "silent-success": silent_success,
    "roughness": roughness,
    "unbounded": unbounded,
    "monotone-curve": monotone_curve,
    "binarisation": binarisation,
}
