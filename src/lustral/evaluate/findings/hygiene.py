"""Is the threat model kept, and is the defence judged as it is deployed? (checks 29 to 32)"""

from math import inf

from scipy import stats

from ..metrics import wilson
from .base import Evidence, Finding, bar, measured


def threat_kept(e: Evidence) -> Finding | None:
    """29: candidates must be finite, inside the threat and inside the pixel range."""
    mended = sum(int(seen.repaired.sum()) for seen in e.stages.values())
    total = sum(len(seen.ids) for seen in e.stages.values())
    if not total:
        return None
    return bar(mended / total, 0, 0.01, f"{mended} of {total} candidates broke the threat and were mended.")


def eight_bit(e: Evidence) -> Finding | None:
    """29: candidates saved as 8-bit images must keep to the threat too."""
    worst = e.stages.get("worst") or e.stages.get("exact")
    if worst is None:
        return None
    over = max(0.0, float(worst.distance_8bit.max()) - e.eps)
    return bar(over, 1e-6, inf, f"Rounded to 8 bits, candidates exceed eps by up to {255 * over:.2f}/255.")


def logits(e: Evidence) -> Finding | None:
    """29: logits must be finite; a classifier that returns probabilities hides its gradients from cross-entropy."""
    probabilities = e.certificate.get("probabilities")
    if probabilities is None:
        return None
    if not e.certificate.get("finite", True):
        return Finding("red", float("nan"), "Some logits are not finite.")
    return Finding(
        "amber" if probabilities else "green",
        float(probabilities),
        f"Outputs look like {'probabilities' if probabilities else 'logits'}.",
    )


def neighbours(e: Evidence) -> Finding | None:
    """30: an image's logits must not depend on the other images of its batch or on their order."""
    return measured(e, "neighbours", 1e-4, 1e-2, "Other batches change logits by {:.1e} of their size.")


FEW, ENOUGH = 8, 32
"""Images on which whoever knows anything says two labels, and on which he is surely better than guessing."""


def above_chance(e: Evidence) -> Finding | None:
    """Is clean accuracy better than guessing? Labels that do not match, or a network that knows nothing, are not."""
    clean = e.stages.get("clean")
    if clean is None:
        return None
    n, chance, labels = len(clean.ids), 1 / e.classes, f"{clean.labels} label{'' if clean.labels == 1 else 's'}"
    guessed = float(stats.binom.sf(round(clean.accuracy * n) - 1, n, chance))  # how often as many are right by luck
    blind = clean.labels == 1 and clean.accuracy < 1  # one label for images of several classes
    red = clean.accuracy <= chance or (blind and n >= FEW) or (guessed > 0.05 and n >= ENOUGH)
    level = "red" if red else "amber" if guessed > 0.05 or blind else "green"
    text = (
        f"Of {n} clean images {clean.accuracy:.1%} are right; guessing among {e.classes} classes gives {chance:.1%}, "
    )
    text += f"and as many or more with a probability of {guessed:.2g}. The decisions are of {labels}."
    return Finding(level, clean.accuracy, text)


def same_rule(e: Evidence) -> Finding | None:
    """31: clean and robust accuracy must be judged by the same number of draws."""
    clean, last = e.stages.get("clean"), e.stages.get("worst") or e.stages.get("exact")
    if clean is None or last is None:
        return None
    same = clean.draws == last.draws
    draws = f"{clean.draws} draw{'' if clean.draws == 1 else 's'}"
    text = f"Clean images are judged on {draws}, attacked ones on {last.draws}."
    return Finding("green" if same else "amber", float(clean.draws), text)


def drift(e: Evidence) -> Finding | None:
    """32: purification changes the label of some clean images: what the defence costs."""
    share = e.certificate.get("drift")
    if share is None:
        return None
    moved, steps = e.certificate["moved"], e.certificate["steps"]
    return bar(
        share,
        0.1,
        inf,
        f"Purification changes {share:.1%} of clean labels and pixels by {moved:.3f} rms, in {steps} steps.",
    )


def enough_images(e: Evidence) -> Finding | None:
    """The width of the interval: smaller differences mean nothing (no number in the list of checks)."""
    last = e.stages.get("worst") or e.stages.get("exact")
    if last is None:
        return None
    found = wilson(last.accuracy, len(last.ids))
    return bar(
        found.high - found.low,
        0.2,
        inf,
        f"On {len(last.ids)} images the 95 % interval is {100 * (found.high - found.low):.0f} points wide.",
    )


CHECKS = {
    "above-chance": above_chance,
    "threat-kept": threat_kept,
    "eight-bit": eight_bit,
    "logits": logits,
    "neighbours": neighbours,
    "same-rule": same_rule,
    "purification-drift": drift,
    "enough-images": enough_images,
}
