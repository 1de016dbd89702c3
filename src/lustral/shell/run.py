"""A run as folds read it: its jobs, and what the ledger holds of them."""

from collections.abc import Sequence

from ..evaluate import metrics
from ..evaluate.protocol import Job
from .ledger import Ledger
from .tables import Outcomes


class Run:
    """The jobs of a run and what the ledger holds of them, read once; ``order``: image ids, shuffled."""

    def __init__(self, ledger: Ledger, jobs: Sequence[Job], order: Sequence[int] = ()):
        self.ledger, self.order = ledger, order
        self.jobs = [job for job in jobs if ledger.done(job.system.name, job.stage.name)]
        self._of: dict[str, dict[str, Job]] = {}
        for job in self.jobs:
            self._of.setdefault(job.system.name, {})[job.stage.name] = job
        self._found: dict[tuple[str, str], Outcomes] = {}

    def outcomes(self, job: Job) -> Outcomes:
        name = job.system.name, job.stage.name
        if name not in self._found:
            found = self.ledger.outcomes(*name)  # of which all images together may not fit into memory
            self._found[name] = found._replace(x=found.x[:0].clone())
        return self._found[name]

    def of(self, system: str) -> dict[str, Job]:
        return self._of[system]

    def last(self, system: str) -> Job:
        """The stage that speaks for a system: the worst case, the exact attack, else its last attack, else its last."""
        stages = self.of(system)
        attacked = [job for job in stages.values() if job.stage.attack is not None and job.stage.name != "null"]
        return stages.get("worst") or stages.get("exact") or (attacked or [*stages.values()])[-1]

    @property
    def systems(self) -> list[str]:
        return list(self._of)


def decisions(run: Run, job: Job) -> dict[int, float]:
    """The share of right decisions on every image of a stage."""
    found = run.outcomes(job)
    right = metrics.voted(found.logits, found.y, job.system.defence.vote).double().mean(dim=1)
    return dict(zip(found.ids.tolist(), right.tolist(), strict=True))
