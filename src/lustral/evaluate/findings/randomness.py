"""Is noise treated as noise? (evaluation checks 10 to 14)"""

from math import inf

import numpy as np

from .. import metrics
from .base import RED, Evidence, Finding, bar, difference, points


def replayable(e: Evidence) -> Finding | None:
    """10: the same seed gives the same logits, at once and after a search."""
    later = [probe.measured for probes in e.probes.values() for probe in probes if probe.kind == "later"]
    if not later and "replays" not in e.certificate:
        return None
    if not e.certificate.get("replays", True):
        return Finding("red", 1.0, "The same seed gives other logits.")
    most = float(np.max(later)) if later else 0.0  # not a number, if one of them is none
    level = "green" if most == 0 else "amber" if most <= 1e-5 else "red"
    text = f"The same seed gives the same logits; asked again after {len(later)} searches they differ by {most:.1e}."
    return Finding(level, most, text)


def declared_random(e: Evidence) -> Finding | None:
    """10: a defence that draws noise must be judged on many draws, one that does not needs one."""
    random = e.certificate.get("random")
    if random is None:
        return None
    if random and not e.random:
        return Finding("red", 1.0, "The defence draws noise but is judged as one that does not.")
    judged = "many draws" if e.random else "one decision"
    text = f"The defence draws {'noise' if random else 'no noise'} and is judged on {judged}."
    return Finding("green", float(random), text)


def eot_agreement(e: Evidence) -> Finding | None:
    """11: gradients of two disjoint sets of as many draws as the attack averages should point the same way."""
    pairs = e.certificate.get("agreement")
    if not pairs:
        return None
    at = max((pair for pair in pairs if pair[0] <= e.eot), default=pairs[0])
    level = "green" if at[1] >= 0.5 else "amber"
    return Finding(
        level,
        at[1],
        f"Gradients of two sets of {at[0]} draws have a cosine of {at[1]:.2f}; the attacks average {e.eot}.",
    )


def fixed_noise(e: Evidence) -> Finding | None:
    """12: where the noise is known, an attack must succeed more often than where it is fresh."""
    if "fixed" not in e.stages or "exact" not in e.stages:
        return None
    gap = difference(e.stages["fixed"], e.stages["exact"])
    if gap is None:
        return None
    high = gap.value > 0 and gap.above < RED
    level = "red" if high else "green" if gap.value < 0 or e.stages["fixed"].accuracy == 0 else "amber"
    return Finding(level, gap.value, f"Known noise against fresh noise: {points(gap)} of accuracy.")


def null_control(e: Evidence) -> Finding | None:
    """13: as many looks without a gradient must do less than the attack."""
    last = "worst" if "worst" in e.stages else "exact"
    if "null" not in e.stages or last not in e.stages:
        return None
    gap = difference(e.stages["null"], e.stages[last])
    if gap is None:
        return None
    level = "red" if gap.value < 0 and gap.below < RED else "green" if gap.low > 0 and gap.above < 0.05 else "amber"
    return Finding(level, gap.value, f"Random signs leave {points(gap)} more accuracy than the attack.")


def looks_inflation(e: Evidence) -> Finding | None:
    """13: how far a metric that counts any failing look falls with no attack at all."""
    null = e.stages.get("null")
    if null is None:
        return None
    looked = metrics.looked(null.wrongs).value
    looks = max((len(w) for w in null.wrongs), default=0)
    text = f"Without an attack {looked:.1%} of images survive {looks} looks"
    text += f", though {null.accuracy:.1%} of fresh draws are right."
    return bar(null.accuracy - looked, 0.1, inf, text)


def selection_bias(e: Evidence) -> Finding | None:
    """14: how much better candidates look to the attack than to the judge."""
    name = e.main()
    if name is None or not e.random:
        return None
    seen = e.stages[name]
    gap = seen.accuracy - (1 - seen.wrong.clamp_min(0).double()).mean().item()
    return bar(
        gap,
        0.1,
        inf,
        f"Under {name} the judge's fresh draws are right in {100 * gap:+.1f} points more cases than the attack's own.",
    )


CHECKS = {
    "replayable": replayable,
    "declared-random": declared_random,
    "eot-agreement": eot_agreement,
    "fixed-noise": fixed_noise,
    "null-control": null_control,
    "looks-inflation": looks_inflation,
    "selection-bias": selection_bias,
}
