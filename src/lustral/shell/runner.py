"""Runs a plan into a ledger, with progress, and folds the ledger into results."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch

import lustral

from ..attacks.pgd import PGD
from ..core.errors import UserError
from ..core.kernel import trace
from ..core.noise import Key
from ..core.spec import digest
from ..core.vote import Majority, Single
from ..evaluate import metrics
from ..evaluate.protocol import Data, Job, describe, pending, run
from .data import read_arrays
from .files import replacing, write_text
from .ledger import Ledger, Outcomes
from .options import Resources
from .report import render
from .terminal import progress, versions


def work(job: Job) -> int:
    """Network rows that one image of a job may cost, forward and backward, for the estimate of the time left."""
    attack, defence = job.stage.attack, job.system.defence
    judging = job.draws
    if attack is None:
        return judging
    gradient = attack.gradient if isinstance(attack, PGD) else None
    eot = gradient.eot if gradient else attack.eot
    exact = gradient is not None and job.stage.name.partition("@")[0] in ("exact", "fixed")
    return judging + attack.looks * eot * defence.vote.draws * (3 if exact else 1)


def execute(
    jobs: Sequence[Job], data: Data, key: Key, folder: Path, resources: Resources, facts: dict | None = None
) -> None:
    """Runs what the ledger in ``folder`` does not hold yet, a batch per core at a time. Ctrl-C keeps what is done.

    Batches side by side, each on one core, are faster than one batch on all cores, and do not mind a busy neighbour.
    """
    spec = describe(jobs, data, key, torch=torch.__version__, lustral=lustral.__version__, **(facts or {}))
    with Ledger(folder / "ledger.sqlite", spec) as ledger, progress() as bar:
        cost = {id(job): work(job) * _steps(job) for job in jobs}
        done = {id(job): ledger.done(job.system.name, job.stage.name) for job in jobs}
        task = bar.add_task("starting", total=sum(cost[id(job)] * job.images for job in jobs))
        bar.advance(task, sum(cost[name] * len(images) for name, images in done.items()))
        todo = list(pending(jobs, data, batch=resources.batch, done=lambda job: done[id(job)]))
        pool = ThreadPoolExecutor(resources.threads or os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))
        try:
            for future in as_completed([pool.submit(run, job, part, key) for job, part in todo]):
                chunk = future.result()
                ledger.write(chunk)
                bar.update(task, description=f"{chunk.job.system.name}: {chunk.job.stage.name}")
                bar.advance(task, cost[id(chunk.job)] * len(chunk.ids))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _steps(job: Job) -> int:
    return job.system.defence.purifier.n_steps if job.system.defence.purifier is not None else 1


def row(ledger: Ledger, job: Job) -> dict:
    """One line of the results: what was done, and what the ledger says of it."""
    system, stage, attack = job.system.name, job.stage.name, job.stage.attack
    found, cost = ledger.outcomes(system, stage), ledger.cost(system, stage)
    right = metrics.right(found.logits, found.y)
    deployed = metrics.average(metrics.voted(found.logits, found.y, job.system.defence.vote))
    several = [k for k in (5, 10) if k <= right.shape[1]]
    gradient = attack.gradient if isinstance(attack, PGD) else None
    base = stage.partition("@")[0]
    return {
        "system": system,
        "stage": base,
        "group": "main",
        "x": None,
        "gradient": _gradient_name(base),
        "loss": getattr(getattr(attack, "loss", None), "__name__", None),
        "norm": type(attack.threat).__name__ if attack else None,
        "eps": attack.threat.eps if attack else None,
        "steps": attack.steps if gradient else None,
        "eot": gradient.eot if gradient else getattr(attack, "eot", None),
        "looks": attack.looks if attack else 0,
        "restarts": attack.restarts if gradient else None,
        "knowledge": job.stage.knowledge,
        "images": len(found.ids),
        "draws": right.shape[1],
        "vote": _vote_name(job),
        "accuracy": deployed.value,
        "low": deployed.low,
        "high": deployed.high,
        "single_draw": list(metrics.average(right)),
        "worst_of": {str(k): metrics.worst_of(right, k).value for k in several},
        "majority_of": {str(k): _majority(found, k) for k in several},
        "mean_logit_of": {str(k): metrics.mean_logit_of(found.logits, found.y, k).value for k in several},
        "null": None,
        "seconds": round(cost.seconds, 2),
        "forward": cost.forward,
        "backward": cost.backward,
        "repaired": int(found.repaired.sum()),
        "max_distance": float(found.distance.max()),
    }


def _majority(found: Outcomes, k: int) -> float:
    return metrics.average(metrics.voted(found.logits, found.y, Majority(k))).value


def _gradient_name(stage: str) -> str:
    names = {"clean": "none", "null": "none (random sign)", "blind": "classifier only", "bpda": "BPDA (identity)"}
    return names.get(stage, "exact (checkpointed)")


def _vote_name(job: Job) -> str:
    vote = job.system.defence.vote
    return "single" if isinstance(vote, Single) else f"{type(vote).__name__} of {vote.draws}"


def results(ledger: Ledger, jobs: Sequence[Job], **facts) -> dict:
    """Everything that the report shows, folded from the ledger."""
    rows = [row(ledger, job) for job in jobs]
    nulls = {r["system"]: r["accuracy"] for r in rows if r["stage"] == "null"}
    for r in rows:
        r["null"] = nulls.get(r["system"])
    return {
        "lustral": lustral.__version__,
        "run": digest(ledger.spec()),
        "ledger_digest": ledger.digest(),
        "versions": versions(),
        **facts,
        "rows": rows,
        "ordering": ordering(rows),
        "paired": paired(ledger, jobs),
        "notes": NOTES,
    }


NOTES = [
    "Accuracy is that of the deployed rule (the vote) on noise that the attack never saw, except in the fixed-noise "
    "stage, where attacker and defence share one noise.",
    "Intervals are Wilson's 95 % with n = images, the independent trials; they are conservative because every image's "
    "own estimate is an average over its draws.",
    "The null control looks at the defence as often as the attack does, with random-sign perturbations of full size "
    "instead of gradients; the worst of its looks is judged like any other candidate.",
    "Forward and backward count the rows through the purifier's network (the classifier where there is none), "
    "recomputation included.",
]


def ordering(rows: Sequence[dict]) -> list[dict]:
    """The claims that a sound evaluation must show: a stronger gradient leaves less accuracy (evaluation alarm 22)."""
    claims = []
    for system in dict.fromkeys(r["system"] for r in rows):
        value = {r["stage"]: r["accuracy"] for r in rows if r["system"] == system and r["group"] == "main"}
        for names in (("blind", "bpda", "exact"), ("exact", "fixed"), ("null", "exact")):
            if all(name in value for name in names):
                values = [value[name] for name in names]
                holds = all(a >= b for a, b in pairwise(values))
                claims.append({"system": system, "claim": " ≥ ".join(names), "values": values, "holds": holds})
    return claims


def paired(ledger: Ledger, jobs: Sequence[Job]) -> list[dict]:
    """McNemar's test between every two systems under the exact attack, on what most of their decisions say."""
    right = {}
    for job in jobs:
        if job.stage.name == "exact":
            found = ledger.outcomes(job.system.name, "exact")
            decisions = metrics.voted(found.logits, found.y, job.system.defence.vote)
            right[job.system.name] = found.ids, metrics.mostly_right(decisions)
    pairs = [(a, b) for a, b in combinations(right, 2) if torch.equal(right[a][0], right[b][0])]
    return [{"a": a, "b": b, "stage": "exact", **metrics.mcnemar(right[a][1], right[b][1])._asdict()} for a, b in pairs]


def pictures(ledger: Ledger, jobs: Sequence[Job], data: Data, key: Key, count: int = 8) -> dict[str, np.ndarray]:
    """Images for people: clean, attacked and purified, what the classifier said of each, one purification as a film."""
    shown = data[: min(count, *(job.images for job in jobs))]
    out = {"y": shown.y.numpy()}
    for job in jobs:
        if job.stage.name != "exact":
            continue
        name, defence = job.system.name, job.system.defence
        x = ledger.outcomes(name, "exact").x[: len(shown.y)]
        frames = [x, x]
        if defence.purifier is not None:
            with torch.no_grad():
                frames = list(trace(defence.purifier, x, key.fold(name, "pictures").rng(shown.ids)))
        said = [defence.classifier(images).argmax(dim=1) for images in (shown.x, x, frames[-1])]
        out |= {
            f"{name}/clean": shown.x.numpy(),
            f"{name}/attacked": x.numpy(),
            f"{name}/purified": frames[-1].numpy(),
            f"{name}/said": torch.stack(said, dim=1).numpy(),
        }
        if defence.purifier is not None:
            film = torch.stack([x, *frames])
            out[f"{name}/trajectory"] = film[:, 0].numpy()
            distance = (film - shown.x).square().flatten(2).mean(dim=2).sqrt()
            out[f"{name}/trajectory_norm"] = distance.mean(dim=1).numpy()
    return out


def publish(folder: Path, found: dict, images: dict[str, np.ndarray]) -> None:
    """Writes results.json, pictures.npz and report.html."""
    write_text(folder / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    with replacing(folder / "pictures.npz") as scratch:
        np.savez_compressed(scratch, **images)
    write_text(folder / "report.html", render(found, images))


def read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What ``publish`` wrote, without the page."""
    place = folder / "results.json"
    if not place.exists():
        raise UserError(
            f"There are no results in {folder}; a finished `lustral evaluate` or `lustral demo` leaves them there."
        )
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{place} is damaged ({e}); run the evaluation again, which reuses its ledger.") from e
    if not isinstance(found, dict) or not {"title", "seed", "data", "threat", "rows", "ordering"} <= found.keys():
        raise UserError(f"{place} holds no results of Lustral; run the evaluation again, which reuses its ledger.")
    return found, read_arrays(folder / "pictures.npz")
