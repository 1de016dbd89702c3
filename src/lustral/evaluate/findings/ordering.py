"""Do stronger attackers do more harm? A reversal means masked gradients or a broken attack (checks 22 to 26 and 28)."""

from .base import RED, Evidence, Finding, difference, points, stronger


def blind_over_bpda(e: Evidence) -> Finding | None:
    """22: an attacker who ignores the purifier must not do better than one who runs it."""
    return stronger(e, "blind", "bpda", "Blind against BPDA")


def bpda_over_exact(e: Evidence) -> Finding | None:
    """22: an approximate gradient must not do better than the exact one."""
    return stronger(e, "bpda", "exact", "BPDA against the exact gradient")


def black_box(e: Evidence) -> Finding | None:
    """23: queries alone must not do better than the gradient."""
    return stronger(e, "black-box", "exact", "Queries alone against the exact gradient")


def transfer(e: Evidence) -> Finding | None:
    """24: candidates made elsewhere must not do better than those made here."""
    return stronger(e, "transfer", "exact", "Transferred candidates against the exact gradient")


def random_noise(e: Evidence) -> Finding | None:
    """25: random signs must not do better than the gradient."""
    return stronger(e, "null", "exact", "Random signs against the exact gradient")


def undefended_twin(e: Evidence) -> Finding | None:
    """26: the same attack on the classifier alone; without bounds it must leave nothing."""
    free, bounded = e.certificate.get("undefended_unbounded"), e.certificate.get("undefended")
    if free is None:
        return None
    level = "red" if free > min(2 / e.classes, (1 + 1 / e.classes) / 2) else "amber" if bounded > 0.5 else "green"
    return Finding(
        level,
        bounded,
        f"On the classifier alone the attack leaves {bounded:.1%}, and {free:.1%} almost without bounds.",
    )


def worst_case(e: Evidence) -> Finding | None:
    """28: the worst case, judged anew, must lie below every single attack's accuracy."""
    worst = e.stages.get("worst")
    if worst is None:
        return None
    seen = [e.stages[name] for name in e.cascade if name in e.stages]
    gaps = [found for found in (difference(worst, stage) for stage in seen) if found is not None]
    if not gaps:
        return None
    largest, surest = max(gaps, key=lambda found: found.value), min(gaps, key=lambda found: found.above)
    level = "amber" if surest.value > 0 and surest.above < RED else "green"
    return Finding(
        level, largest.value, f"The worst case judged anew lies at most {points(largest)} above a single attack."
    )


CHECKS = {
    "blind-over-bpda": blind_over_bpda,
    "bpda-over-exact": bpda_over_exact,
    "black-box": black_box,
    "transfer": transfer,
    "random-noise": random_noise,
    "undefended-twin": undefended_twin,
    "worst-case": worst_case,
}
