"""What must hold between a run's stages, and how its systems stand beside each other."""

from collections.abc import Sequence

import torch

from ..evaluate import metrics
from ..evaluate.findings.base import RED, gap
from ..evaluate.protocol import Job, decided
from .run import Run, decisions

ORDER = (
    ("blind", "bpda", "exact"),
    ("bpda", "exact"),
    ("exact", "fixed"),
    ("exact", "known init", "fixed"),
    ("exact", "known step", "fixed"),
    ("null", "exact"),
)
"""Stages whose attackers know ever more, or try ever harder."""


def ordering(run: Run) -> list[dict]:
    """The claims that a sound evaluation must show, on the images that faced all of a claim's stages (alarm 22).

    A claim fails where chance does not explain it; ``chance`` where it does explain that an accuracy rises.
    """
    claims = []
    for system in run.systems:
        stages = run.of(system)
        present = [names for names in ORDER if all(name in stages for name in names)]
        longest = [names for names in present if not any(set(names) < set(others) for others in present)]
        claims += [claim for names in longest if (claim := _claim(run, system, [stages[name] for name in names]))]
    return claims


def _claim(run: Run, system: str, jobs: Sequence[Job]) -> dict | None:
    right = [decisions(run, job) for job in jobs]
    common = sorted(set.intersection(*(set(shares) for shares in right)))
    if not common:
        return None
    shares = torch.tensor([[each[image] for image in common] for each in right], dtype=torch.float64)
    risen = [found for found in map(gap, shares[:-1] - shares[1:]) if found.value < 0]
    holds = all(found.below >= RED for found in risen)
    return {
        "system": system,
        "claim": " ≥ ".join(job.stage.name for job in jobs),
        "values": shares.mean(dim=1).tolist(),
        "holds": holds,
        "chance": bool(risen) and holds,
        "images": len(common),
    }


def paired(run: Run) -> list[dict]:
    """The baseline and every other system on the same images under their last stage: McNemar's test, the difference.

    The baseline is the first system without a purifier, or the first of all. `lustral compare` pairs any two of runs.
    """
    last = {name: run.of(name).get("worst") or run.of(name).get("exact") for name in run.systems}
    jobs = [job for job in last.values() if job is not None]
    if not jobs:
        return []
    baseline = next((job for job in jobs if job.system.defence.purifier is None), jobs[0])
    pairs = ((job, _pair(run, baseline, job)) for job in jobs if job is not baseline)
    return [{"a": baseline.system.name, "b": job.system.name} | line for job, line in pairs if line]


def _pair(run: Run, *jobs: Job) -> dict | None:
    """Two stages on the images that both faced: shares of right decisions, none of an image that an attack had won."""
    shares = [dict.fromkeys(decided(job, run.ledger), 0.0) | decisions(run, job) for job in jobs]
    common = sorted(set.intersection(*map(set, shares)))
    if not common:
        return None
    a, b = (torch.tensor([each[image] for image in common], dtype=torch.float64) for each in shares)
    line = {"stage": jobs[0].stage.name, "images": len(common), **metrics.mcnemar(a > 0.5, b > 0.5)._asdict()}
    return line | {"difference": list(metrics.bootstrap(a - b)), "p_flip": metrics.flipped(a - b)}
