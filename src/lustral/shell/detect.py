"""Detection of a finished run's attacked images by how a denoiser sees them: areas and ROC curves."""

import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..core.errors import UserError, unknown
from ..core.noise import Key
from ..denoisers.base import Denoiser
from ..evaluate.detection import Seen, detect
from ..purifiers.adaptive import UnitField
from ..purifiers.sample_specific import NORMS, score_norm
from . import build, plan, standard, weights
from . import device as devices
from .files import replacing, write_text
from .ledger import Ledger
from .options import Purification, Resources
from .systems import Statistic, by_parts

STATISTICS = ("field", *NORMS)


def statistic(denoiser: Denoiser, kind: str, sigma: float) -> Statistic:
    """``field``: ADP's |F(x)|₂ at a noise level; ``eps``, ``single``: SSNI's score norms."""
    if kind not in STATISTICS:
        raise unknown("statistic", kind, STATISTICS)
    if kind in NORMS:
        return score_norm(denoiser, kind)
    if not denoiser.sigma_min <= sigma <= denoiser.sigma_max:
        known = f"{denoiser.sigma_min:g} to {denoiser.sigma_max:g}"
        raise UserError(f"This denoiser knows noise of sigma {known}, not {sigma:g}; choose --sigma from there.")
    field = UnitField(denoiser, sigma)
    return lambda x, rng: torch.linalg.vector_norm(field(x).flatten(1), dim=1)


ON_ALL = Resources()


@torch.no_grad()
def run(place: Path, name: str | None, kind: str, sigma: float | None, resources: Resources = ON_ALL) -> list[Seen]:
    """Every stage whose candidates the ledger holds; writes detection.json and detection.png beside it.

    The denoiser is the run's own where none is named; so is the noise level, that of its ADP.
    """
    build.prepare(resources)
    planned = plan.load(place, resources)
    key, data = Key(planned.options.seed).fold("detection"), planned.data
    name, sigma = _chosen(planned, name, sigma)
    denoiser, about = weights.load(name, "denoiser")
    if about.image != list(data.x.shape[1:]):
        shape = list(data.x.shape[1:])
        raise UserError(f"{name} takes images of shape {about.image}, the run's are {shape}; choose another.")
    measure = statistic(devices.on(resources.device, denoiser), kind, sigma)
    clean = dict(zip(data.ids.tolist(), by_parts(measure, data.x, key.rng(data.ids)).tolist(), strict=True))
    seen = []
    with Ledger(place / "ledger.sqlite") as ledger:
        for job in planned.jobs:
            ids = sorted(ledger.done(job.system.name, job.stage.name))
            if job.stage.bound is None or len(ids) < 2:
                continue
            x = ledger.candidates(job.system.name, job.stage.name, ids)
            attacked = by_parts(measure, x, key.rng(torch.tensor(ids)))
            found = detect(torch.tensor([clean[image] for image in ids]), attacked)
            seen.append(Seen(job.system.name, job.stage.name, len(ids), found))
    if not seen:
        raise UserError(f"{place} holds no attacked images, two of a stage at least; attack some first.")
    made = [s._asdict() | {"found": s.found._asdict()} for s in seen]
    told = {"denoiser": name, "statistic": kind, "sigma": sigma if kind == "field" else None, "stages": made}
    write_text(place / "detection.json", json.dumps(told, indent=1) + "\n")
    _draw(place / "detection.png", seen, f"{kind} of {name}")
    return seen


SIGMA = 0.25


def _chosen(planned: plan.Plan, name: str | None, sigma: float | None) -> tuple[str, float]:
    """What was named, or what the run's systems have in common; for a run without a purifier, what is usual."""
    used = [how for _, how, _ in plan.named(planned.options) if how.method != "none"]
    denoisers = dict.fromkeys(how.denoiser for how in used)
    if name is None and len(denoisers) > 1:
        raise UserError(f"This run has several denoisers; choose one with --denoiser: {', '.join(denoisers)}.")
    usual = standard.purification(Purification(), planned.options.data).denoiser
    levels = {how.sigma for how in used if how.method == "adp"}
    if sigma is None:
        sigma = levels.pop() if len(levels) == 1 else SIGMA
    return standard.named("denoiser", name or next(iter(denoisers), usual), "--denoiser"), sigma


def _draw(path: Path, seen: list[Seen], title: str) -> None:
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for s in seen:
        axes.plot(s.found.false, s.found.true, label=f"{s.system}: {s.stage} ({s.found.auroc.value:.2f})")
    axes.set(xlabel="false alarms", ylabel="attacked images caught", title=title, xlim=(0, 1), ylim=(0, 1))
    if seen:
        axes.legend(fontsize=6, loc="lower right")
    with replacing(path) as scratch:
        figure.savefig(scratch, format="png", dpi=120)
