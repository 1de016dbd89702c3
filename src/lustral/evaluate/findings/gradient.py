"""Is the gradient that the attacks follow the gradient of what runs? (evaluation checks 1 to 6, 8 and 9)"""

from math import inf

from ..metrics import wilson
from .base import Evidence, Finding, bar, measured, must
from .witnessed import capped, hidden, predicts, worse


def gradient_exists(e: Evidence) -> Finding | None:
    """1, 2: an image whose gradient is zero everywhere cannot be attacked by it."""
    return measured(e, "gradient_zero", 0, 0.1, "{:.0%} of the probed images have no gradient at all.")


def gradient_finite(e: Evidence) -> Finding | None:
    """2: NaN or infinite gradients."""
    return must(e, "gradient_finite", "Gradients are finite.", "Some gradients are not finite.")


def replayed_states(e: Evidence) -> Finding | None:
    """3: a step run again, as the backward pass does, gives the same state to the bit."""
    return must(
        e, "replays_states", "Recomputed states equal stored ones.", "Recomputed states differ from stored ones."
    )


def autograd_match(e: Evidence) -> Finding | None:
    """4: the exact gradient against plain autograd over the first steps."""
    return measured(e, "autograd", 1e-6, 1e-3, "Relative difference to plain autograd: {:.1e}.")


def finite_difference(e: Evidence) -> Finding | None:
    """5: difference quotients over the whole chain, noise frozen: in float64, and in what is deployed."""
    exact, pairs = e.certificate.get("finite_difference"), e.certificate.get("deployed")
    inside, held = _inside(e, exact), predicts(tuple(pair[:2]) for pair in pairs or ())
    if not held and inside is None and "finite_difference" in e.certificate:
        return Finding("amber", None, f"{UNREACHED} and nothing could be measured as deployed.")
    if not held:
        return inside
    share = sum(held) / len(held)
    level = "green" if share >= 0.9 else "red" if wilson(share, len(held)).high < 0.75 else "amber"
    level = capped(e, level)
    across, unseen = hidden(e.certificate.get("across") or ())
    across = capped(e, across)
    text = f"As deployed, the gradient predicts the change along it at {sum(held)} of {len(held)} places"
    text += f", and does not foretell {unseen:.0%} of slopes along random signs." if "across" in e.certificate else "."
    if inside is None:
        return Finding(worse(worse(level, across), "amber"), share, f"{text} {UNREACHED}.")
    if inside.level == "red" and level == "green":
        level = "amber"  # quotients may be of rounding that was not seen, where what is deployed agrees
    elif level != "red" and inside.level != "green":
        level = inside.level
    return Finding(worse(level, across), exact, f"{inside.text} {text}")


UNREACHED = (
    "No copy in float64 could be made (a network in a closure, or a part that keeps to its own precision), so the "
    "gradient was not compared with exact difference quotients"
)


def _inside(e: Evidence, error: float | None) -> Finding | None:
    """What the copy in float64 says; quotients of rounding, and of saturated probabilities, are no proof."""
    found = bar(error, 1e-3, 1e-2, f"Relative difference to finite differences: {error or 0:.1e}.")
    if found is None or found.level != "red":
        return found
    if e.certificate.get("rounds"):
        text = "; a part of it computes in a lower precision than float64, whose rounding such quotients are made of."
        return found._replace(level="amber", text=found.text.removesuffix(".") + text)
    return found._replace(level=capped(e, "red"))


def noise_addresses(e: Evidence) -> Finding | None:
    """6: forward and backward pass draw the same noise at every step."""
    return must(
        e, "replays_addresses", "The backward pass draws the same noise.", "The backward pass draws other noise."
    )


def gradient_profile(e: Evidence) -> Finding | None:
    """8: the gradient's length must neither explode nor vanish along the chain."""
    norms = e.certificate.get("norms")
    if not norms:
        return None
    lengths = [length for _, length in norms]
    ratio = max(lengths) / max(min(lengths), 1e-30)
    return bar(ratio, 1e3, inf, f"The gradient's length changes {ratio:.3g} times along the steps.")


def bpda_cosine(e: Evidence) -> Finding | None:
    """8: the exact gradient and BPDA's, which should at least not oppose each other."""
    cosine = e.certificate.get("cosine_bpda")
    if cosine is None:
        return None
    level = "green" if cosine >= 0 else "amber"
    return Finding(level, cosine, f"Cosine between the exact gradient and BPDA's: {cosine:.2f}.")


def clipping(e: Evidence) -> Finding | None:
    """9: pixels that purification clips to 0 or 1 pass no gradient."""
    return measured(e, "clipped", 0.5, inf, "{:.0%} of purified pixels are clipped and pass no gradient.")


CHECKS = {
    "gradient-exists": gradient_exists,
    "gradient-finite": gradient_finite,
    "replayed-states": replayed_states,
    "autograd-match": autograd_match,
    "finite-difference": finite_difference,
    "noise-addresses": noise_addresses,
    "gradient-profile": gradient_profile,
    "bpda-cosine": bpda_cosine,
    "clipping": clipping,
}
