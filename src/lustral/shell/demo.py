"""The demonstration: the whole system on real handwritten digits, in a few minutes."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..attacks.gradients import Selection
from ..core.errors import UserError
from ..core.noise import Key
from ..core.threat import Linf, Threat
from ..evaluate.protocol import Job, shuffled
from . import build, folder, memory, origins, results, runner, standard, views
from .images import data as datasets
from .ledger import Ledger
from .options import Classification, Purification, Resources, Search
from .run import Run
from .terminal import command

EPS = 3 / 16
WHY_FAIR = (
    "The digits have 17 grey levels; eps = 3/16 is three of them. Of all test images against the whole data, the "
    "nearest two of different digits are 7/16 apart in Linf, more than twice eps: no perturbation allowed here can "
    "turn an image into another digit's, so a classifier that resists all of them exists."
)
LADDER = ("clean", "null", "blind", "bpda", "exact", "fixed")
BATCH, ROWS = 64, 256  # images that are attacked together, and the most rows that a network sees at a time
STEPS, DRAWS, CHOOSING = 10, 20, 4  # of a search; of the judge; by which a search compares its iterates
T_STAR, SWEPT = 0.1, "diffpure-ddpm"
CURVE_IMAGES, CURVE_STEPS, CURVE_DRAWS = 12, 4, 8


@dataclass(frozen=True)
class Entry:
    """A system of the demonstration, from which jobs are made; ``eot`` decisions are averaged over."""

    name: str
    how: Purification
    judge: Classification = Classification()
    eot: int = 4

    def job(
        self, stage: str, threat: Threat, search: Search, images: int, draws: int, spend: Resources, called: str = ""
    ) -> Job:
        """A stage on the first images. Networks see all rows of a look at a time, so that none are there to fill up."""
        votes = self.judge.draws
        looked = 1 if self.how.method == "none" else search.eot * votes
        rows = min(ROWS, min(BATCH, images) * looked)
        system = build.system(self.name, *standard.system(self.how, self.judge, "digits"), rows, spend.device)
        made = build.stage(stage, system, threat, search, spend, draws, called)
        if stage in ("bpda", "exact") and system.random:
            select = Selection(max(1, CHOOSING // votes))
            made = replace(made, attack=replace(made.attack, select=select))
        return Job(system, made, images)


def systems() -> list[Entry]:
    """Undefended, ADP, and DiffPure with two reverse processes, around the weights that ship with Lustral."""
    # 10 steps instead of the reference's 100 at the same t*: on these images neither clean accuracy nor RMSE differs.
    return [
        Entry("undefended", Purification(method="none")),
        Entry("adp", Purification(method="adp", sigma=0.25), Classification(vote="mean-softmax", draws=4), eot=2),
        Entry("diffpure-sde", Purification(solver="sde", steps=10)),
        Entry(SWEPT, Purification(solver="ddpm", steps=10, t_star=T_STAR)),
    ]


def plan(images: int, resources: Resources) -> tuple[list[Job], dict[tuple[str, str], tuple[str, float]]]:
    """The jobs, and for those on a curve which curve and where."""
    threat, jobs, curves, few = Linf(EPS), [], {}, min(images, CURVE_IMAGES)
    for system in systems():
        alone, votes = system.how.method == "none", system.judge.draws
        for stage in ("clean", "null", "exact") if alone else LADDER:
            # Known noise makes the victim deterministic, so its attack spends the saved draws on more steps.
            known = Search(steps=2 * STEPS if votes == 1 else STEPS, eot=1)
            used = known if stage == "fixed" else Search(steps=STEPS, eot=system.eot)
            jobs.append(system.job(stage, threat, used, images, DRAWS, resources))
        for eps in (EPS / 3, EPS * 2 / 3, EPS * 4 / 3):
            called, used = f"exact@eps={eps:.4f}", Search(steps=CURVE_STEPS, eot=max(1, 4 // votes))
            jobs.append(system.job("exact", Linf(eps), used, few, CURVE_DRAWS, resources, called))
            curves[system.name, called] = "eps", eps
    for t_star in (0.05, 0.15):
        system = Entry(f"{SWEPT}, t*={t_star:g}", Purification(solver="ddpm", steps=10, t_star=t_star))
        for stage in ("clean", "exact"):
            used = Search(steps=CURVE_STEPS, eot=system.eot)
            jobs.append(system.job(stage, threat, used, few, CURVE_DRAWS, resources))
            curves[system.name, stage] = "t_star", t_star
    return jobs, curves


def main(out: Path, images: int, seed: int, resources: Resources) -> dict:
    """Runs the demonstration into ``out`` and returns its results."""
    memory.keep()
    build.prepare(resources)
    if images < 1:
        raise UserError(f"images must be at least 1, not {images}.")
    data = datasets.load("digits", "test")[:images]
    key = Key(seed)
    jobs, curves = plan(len(data.ids), resources)
    jobs = [replace(job, system=replace(job.system, origin=origins.of(job.system.defence, data.x))) for job in jobs]
    with runner.open_ledger(jobs, data, key, out) as ledger:
        runner.execute(jobs, data, key, ledger, resources)
    return finish(out, jobs, curves, data, key, seed, len(data.ids))


def finish(out: Path, jobs: list[Job], curves: dict, data, key: Key, seed: int, images: int) -> dict:
    """Folds the ledger into results.json, pictures.npz and report.html."""
    main_jobs = [job for job in jobs if (job.system.name, job.stage.name) not in curves]
    with Ledger(out / "ledger.sqlite") as ledger:
        ledger.note(command=command())
        found = results.results(
            ledger,
            main_jobs,
            order=shuffled(data, key),
            title="Lustral demo",
            seed=seed,
            data={"name": "digits", "split": "test", "images": images, "sha256": ledger.spec()["data"]["x"]["sha256"]},
            threat={"norm": "Linf", "eps": EPS, "why": WHY_FAIR},
        )
        for job in jobs:
            place = curves.get((job.system.name, job.stage.name))
            if place is not None:
                line = results.row(Run(ledger, [job]), job) | {"group": place[0], "x": place[1]}
                line["system"] = line["system"].partition(",")[0]
                found["rows"].append(line)
        found["rows"] += [
            row | {"group": "t_star", "x": T_STAR}
            for row in found["rows"]
            if row["system"] == SWEPT and row["group"] == "main" and row["stage"] in ("clean", "exact")
        ]
        found["seconds"] = round(sum(ledger.cost(j.system.name, j.stage.name).seconds for j in jobs), 1)
        images_shown = views.pictures(ledger, main_jobs, data, key)
    found = folder.hold_back(found, allow_red=False)
    folder.publish(out, found, images_shown)
    return found
