"""Folds a run's ledger into results: rows, risks, published metrics, findings, and what they withhold."""

from collections.abc import Sequence

import numpy as np
import torch

from ..attacks.anatomy import gradient_name, summary
from ..core.spec import digest
from ..core.vote import Single
from ..evaluate import metrics
from ..evaluate.findings import Evidence, findings, withheld
from ..evaluate.findings.base import Seen
from ..evaluate.protocol import Job, decided
from ..evaluate.published import published
from .claims import ordering, paired
from .ledger import Ledger
from .run import Run, decisions
from .tables import Outcomes

FOLDS = (5, 10)
NOTES = [
    "Accuracy is that of the deployed rule (the vote) on noise that the attack never saw, except in the fixed-noise "
    "stage, where attacker and defence share one noise.",
    "Intervals are Wilson's 95 % with n = images, the independent trials; they are conservative because every image's "
    "own estimate is an average over its draws.",
    "The null control looks at the defence as often as the attack does, with random-sign perturbations of full size "
    "instead of gradients; the best of its looks is judged like any other candidate.",
    "In a suite an image that an earlier attack decided (no draw of the judge was right) leaves; it counts as wrong in "
    "the rows of the attacks after it. The worst case is every image's worst candidate, judged anew.",
    "Forward and backward count the rows through the purifier's network (the classifier where there is none), "
    "recomputation included.",
]


def results(ledger: Ledger, jobs: Sequence[Job], *, order: Sequence[int], **shown) -> dict:
    """Everything that the report shows, folded from the ledger, and what else is ``shown``.

    Where an interval may have decided when the run ended, the worst case has the anytime-valid one: Wilson's does not
    hold then.
    """
    run, spec, facts = Run(ledger, jobs, order), ledger.spec(), ledger.facts()
    rows = [row(run, job) for job in run.jobs]
    with_null(run, rows)
    about = {name: details(run, name) for name in run.systems}
    for line in rows:
        if "width" in facts and line["stage"] == "worst":
            _, line["low"], line["high"] = about[line["system"]]["sequence"]
    said = {name: findings(evidence(run, name)) for name in run.systems}
    held = {name: withheld(found) for name, found in said.items()}
    return {
        "lustral": spec.get("lustral"),
        "run": digest(spec),
        "ledger_digest": ledger.digest(),
        "versions": facts.get("versions") or {},
        "command": facts.get("command"),
        "stopped_at_width": facts.get("width"),
        **shown,
        "rows": rows,
        "ordering": ordering(run),
        "paired": paired(run),
        "findings": {name: [finding._asdict() for finding in found] for name, found in said.items()},
        "withheld": {name: found for name, found in held.items() if found},
        "certificates": {name: ledger.certificate(name) for name in run.systems},
        "details": about,
        "caveats": caveats(run),
        "random": {job.system.name: job.system.random for job in run.jobs},
        "test_images": {job.system.name: str(job.system.origin) for job in run.jobs},
        "notes": NOTES,
    }


def row(run: Run, job: Job) -> dict:
    """One line of the results: what was done, and what the ledger says of it."""
    stage, attack, found = job.stage, job.stage.attack, run.outcomes(job)
    cost = run.ledger.cost(job.system.name, stage.name)
    right = metrics.right(found.logits, found.y)
    several = [k for k in FOLDS if k <= right.shape[1]]
    share, faced = faced_share(run, job)
    base = stage.name.partition("@")[0]

    def of_all(estimate: metrics.Estimate) -> metrics.Estimate:
        return metrics.wilson(estimate.value * share, faced)

    deployed = of_all(metrics.average(metrics.voted(found.logits, found.y, job.system.defence.vote)))
    return {
        "system": job.system.name,
        "stage": base,
        "group": group(run, job),
        "x": stage.bound.eps if "@eps" in stage.name else None,
        **(summary(attack) if attack is not None else NO_ATTACK),
        "norm": type(stage.bound).__name__ if stage.bound else None,
        "eps": stage.bound.eps if stage.bound else None,
        "knowledge": stage.knowledge,
        "images": faced,
        "attacked": len(found.ids),
        "draws": right.shape[1],
        "vote": _vote_name(job),
        "accuracy": deployed.value,
        "low": deployed.low,
        "high": deployed.high,
        "single_draw": list(of_all(metrics.average(right))),
        "worst_of": {str(k): of_all(metrics.worst_of(right, k)).value for k in several},
        "majority_of": {str(k): of_all(metrics.majority_of(found.logits, found.y, k)).value for k in several},
        "mean_logit_of": {str(k): of_all(metrics.mean_logit_of(found.logits, found.y, k)).value for k in several},
        "null": None,
        "seconds": round(cost.seconds, 2),
        "forward": cost.forward,
        "backward": cost.backward,
        "repaired": int(found.repaired.sum()),
        "max_distance": float(found.distance.max()),
    }


NO_ATTACK = {"search": None, "gradient": "none", "loss": None, "steps": None, "eot": None, "looks": 0, "restarts": None}


def faced_share(run: Run, job: Job) -> tuple[float, int]:
    """The share of a stage's images that were still there when it began, and the number of all of them."""
    attacked = set(run.outcomes(job).ids.tolist())
    faced = attacked | decided(job, run.ledger)
    return len(attacked) / len(faced), len(faced)


def group(run: Run, job: Job) -> str:
    """Where a row belongs: ``main``, a point of the curve over ``eps``, or an ``attack`` of a suite's cascade."""
    if "@eps" in job.stage.name:
        return "eps"
    worst = run.of(job.system.name).get("worst")
    cascade = worst is not None and job.stage.name in cascade_of(worst)
    return "attack" if cascade else "main"


def cascade_of(worst: Job) -> tuple[str, ...]:
    """The attacks of a suite in their order: the stages to choose from that are no controls."""
    controls = ("clean", "null", "blind", "bpda", "exact", "black-box")
    return tuple(name for name in worst.stage.choose if name not in controls)


def _vote_name(job: Job) -> str:
    vote = job.system.defence.vote
    return "single" if isinstance(vote, Single) else f"{type(vote).__name__} of {vote.draws}"


def with_null(run: Run, rows: list[dict]) -> None:
    """Puts the null control beside rows of its size, on a row's images: its accuracy, and what as many looks leave."""
    for line, job in zip(rows, run.jobs, strict=True):
        null = run.of(line["system"]).get("null")
        if null is None or job.stage.bound not in (None, null.stage.bound):
            continue
        found, right = run.outcomes(null), decisions(run, null)
        ids = set(run.outcomes(job).ids.tolist()) | decided(job, run.ledger)
        line["null"] = float(np.mean([share for image, share in right.items() if image in ids]))
        looks = min(line["looks"], max(map(len, found.wrongs), default=0))
        if looks:
            wrongs = [w for image, w in zip(found.ids.tolist(), found.wrongs, strict=True) if image in ids]
            line["null_looked"] = {"looks": looks, "accuracy": metrics.looked(wrongs, looks).value}


def caveats(run: Run) -> list[str]:
    """What to know before believing any number: which purifiers were attacked, but never by their exact gradient."""
    untried = []
    for name in run.systems:
        jobs = [job for job in run.of(name).values() if job.stage.attack is not None and job.stage.name != "null"]
        exact = any(gradient_name(job.stage.attack).startswith(FOLLOWED) for job in jobs)
        if jobs and not exact and jobs[0].system.defence.purifier is not None:
            untried.append(name)
    if not untried:
        return []
    return [f"No attack here follows the exact gradient through {', '.join(untried)}; one that does may leave less."]


FOLLOWED = ("exact", "of another library")
"""Gradients that go through the purifier, or may: what another library's attack differentiates is its own affair."""


def details(run: Run, name: str) -> dict:
    """Of the stage that speaks for a system: every threat statement, others' metrics, classes, cost, histogram.

    Without an attack there is nothing to say about robustness.
    """
    stages, last = run.of(name), run.last(name)
    looked = stages.get("apgd-margin") or last
    found = run.outcomes(last)
    right = metrics.right(found.logits, found.y)
    robust = last.stage.name == "worst" or (last.stage.attack is not None and last.stage.name != "null")
    others = published(found.logits, found.y, looks_of(run, looked, found.ids.tolist())) if robust else []
    verdicts = decisions(run, last)
    return {
        "stage": last.stage.name,
        "risks": _risks(run, last) if robust else [],
        "clean_risks": _risks(run, stages["clean"]) if "clean" in stages else [],
        "published": [item._replace(value=item.value and list(item.value))._asdict() for item in others],
        "bootstrap": list(metrics.average_by_bootstrap(torch.tensor([*verdicts.values()], dtype=torch.float64))),
        "sequence": list(metrics.sequence([verdicts[image] for image in run.order if image in verdicts])),
        "per_class": {label: list(value) for label, value in metrics.per_class(right, found.y).items()},
        "draws_right": right.sum(dim=1).tolist(),
        "cost_curve": cost_curve(run, name),
    }


def _risks(run: Run, job: Job) -> list[dict]:
    found = run.outcomes(job)
    return [risk._replace(accuracy=list(risk.accuracy))._asdict() for risk in metrics.risks(found.logits, found.y)]


def looks_of(run: Run, looked: Job, ids: Sequence[int]) -> list[np.ndarray]:
    """The shares of wrong draws at every look of an attack, images that had left before counted as lost.

    Nothing where no attack that looks is on record.
    """
    wrongs = dict(zip(run.outcomes(looked).ids.tolist(), run.outcomes(looked).wrongs, strict=True))
    if not any(len(w) for w in wrongs.values()):
        return []
    return [wrongs.get(image, np.ones(1)) for image in ids]


def cost_curve(run: Run, name: str) -> list[dict]:
    """Robust accuracy after each attack of the cascade, against the network rows that an image has cost so far."""
    worst = run.of(name).get("worst")
    if worst is None:
        return []
    share: dict[int, float] = {}
    forward = backward = 0
    curve = []
    for stage in cascade_of(worst):
        job = run.of(name).get(stage)
        if job is None:
            continue
        found, cost = run.outcomes(job), run.ledger.cost(name, stage)
        for image, right in zip(found.ids.tolist(), metrics.right(found.logits, found.y).double().mean(1), strict=True):
            share[image] = min(share.get(image, 1.0), float(right))
        forward, backward = forward + cost.forward, backward + cost.backward
        n = len(share)
        point = {"stage": stage, "forward": forward / n, "backward": backward / n}
        curve.append(point | {"accuracy": sum(share.values()) / n})
    return curve


def evidence(run: Run, name: str) -> Evidence:
    """What the findings look at."""
    stages = run.of(name)
    system = next(iter(stages.values())).system
    bounds = [job.stage.bound.eps for job in stages.values() if job.stage.bound and job.stage.name in MAIN]
    main = stages.get("apgd-margin") or stages.get("exact")
    worst = stages.get("worst")
    classes = next(iter(run.outcomes(job).logits.shape[-1] for job in stages.values()))
    return Evidence(
        eps=bounds[0] if bounds else 0.0,
        classes=classes,
        random=system.random,
        bare=system.defence.purifier is None,
        eot=(summary(main.stage.attack)["eot"] or 1) if main else 1,
        certificate=run.ledger.certificate(name) or {},
        stages={stage: seen(run.outcomes(job), job) for stage, job in stages.items()},
        cascade=cascade_of(worst) if worst else (),
        probes=run.ledger.probes(name),
        origin=system.origin,
        probabilities=any(metrics.probabilities(run.outcomes(job).logits) for job in stages.values()),
    )


MAIN = ("worst", "exact", "bpda", "blind", "null", "fixed")


def seen(found: Outcomes, job: Job) -> Seen:
    """A stage as findings see it: decisions, as the attack does."""
    decided = metrics.decided(found.logits, job.system.defence.vote)
    return Seen(
        found.ids,
        (decided == found.y[:, None]).double().mean(dim=1),
        found.repaired,
        found.distance_8bit,
        found.wrong,
        found.losses,
        found.wrongs,
        found.logits.shape[1],
        len(decided.unique()),
    )
