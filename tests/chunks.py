"""Results for ledgers, made up."""

import torch

from components import SHAPE
from lustral.attacks.search import Outcome
from lustral.core.noise import Key
from lustral.defence import Defence
from lustral.evaluate.protocol import Chunk, Job, Stage, System
from lustral.evaluate.witness import Probe

SPEC = {"key": {"seed": 0}, "jobs": [{"stage": "clean", "images": 6}]}
DRAWS, CLASSES = 3, 4


def chunk(ids: list[int], system: str = "s", stage: str = "clean", seconds: float = 1.0) -> Chunk:
    """Results of images that depend on their ids alone."""
    rng, n = Key(1).rng(torch.tensor(ids)), len(ids)
    y = torch.tensor([i % CLASSES for i in ids])
    logits = rng.fold("logits").normal(torch.empty(n, DRAWS, CLASSES))
    x = rng.fold("x").uniform(torch.empty(n, *SHAPE))
    distance, distance_8bit, loss = rng.fold("rest").uniform(torch.empty(n, 3)).unbind(dim=1)
    images, repaired = torch.tensor(ids), torch.tensor([i % 2 == 0 for i in ids])
    job = Job(System(system, Defence(lambda x: x)), Stage(stage), 6)
    history = rng.fold("looks").uniform(torch.empty(n, 4))
    history[:, 2:] = torch.where(torch.tensor(ids)[:, None] % 2 == 0, history[:, 2:], torch.nan)
    outcome = Outcome(x, loss, loss / 2, history, history / 2)
    probes = tuple(Probe(i, kind, 1, 1.5, i / 3) for i in ids for kind in ("step", "later"))
    return Chunk(job, images, y, x, distance, distance_8bit, repaired, outcome, logits, seconds, 5 * n, 2 * n, probes)
