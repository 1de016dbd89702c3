"""Is the gradient that the attacks follow the gradient of what runs? (evaluation checks 1 to 6, 8 and 9)"""

from math import inf

from .base import Evidence, Finding, bar


def gradient_exists(e: Evidence) -> Finding | None:
    """1, 2: an image whose gradient is zero everywhere cannot be attacked by it."""
    share = e.certificate.get("gradient_zero")
    return (
        bar(share, 0, 0.1, f"{share:.0%} of the probed images have no gradient at all.") if share is not None else None
    )


def gradient_finite(e: Evidence) -> Finding | None:
    """2: NaN or infinite gradients."""
    finite = e.certificate.get("gradient_finite")
    if finite is None:
        return None
    return Finding("green" if finite else "red", float(finite), f"Gradients are {'' if finite else 'not '}finite.")


def replayed_states(e: Evidence) -> Finding | None:
    """3: a step run again, as the backward pass does, gives the same state to the bit."""
    same = e.certificate.get("replays_states")
    if same is None:
        return None
    return Finding(
        "green" if same else "red", float(same), f"Recomputed states {'equal' if same else 'differ from'} stored ones."
    )


def autograd_match(e: Evidence) -> Finding | None:
    """4: the exact gradient against plain autograd over the first steps."""
    error = e.certificate.get("autograd")
    return None if error is None else bar(error, 1e-6, 1e-3, f"Relative difference to plain autograd: {error:.1e}.")


def finite_difference(e: Evidence) -> Finding | None:
    """5: a difference quotient over the whole chain, noise frozen, in float64."""
    error = e.certificate.get("finite_difference")
    return None if error is None else bar(error, 1e-3, 1e-2, f"Relative difference to finite differences: {error:.1e}.")


def noise_addresses(e: Evidence) -> Finding | None:
    """6: forward and backward pass draw the same noise at every step."""
    same = e.certificate.get("replays_addresses")
    if same is None:
        return None
    return Finding(
        "green" if same else "red", float(same), f"The backward pass draws {'the same' if same else 'other'} noise."
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
    return (
        None if cosine is None else bar(-cosine, 0, inf, f"Cosine between the exact gradient and BPDA's: {cosine:.2f}.")
    )


def clipping(e: Evidence) -> Finding | None:
    """9: pixels that purification clips to 0 or 1 pass no gradient."""
    share = e.certificate.get("clipped")
    return (
        None
        if share is None
        else bar(share, 0.5, inf, f"{share:.0%} of purified pixels are clipped and pass no gradient.")
    )


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
