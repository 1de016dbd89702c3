"""What a witness measures, and what is counted, is a matter of the images and never of the batches they came in."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import pytest
import torch
from torch import Tensor

from digits import digits, system
from lustral.attacks.apgd import APGD
from lustral.attacks.composed import Targeted
from lustral.attacks.estimators import Growing
from lustral.attacks.fab import FAB
from lustral.attacks.gradients import Selection, exact
from lustral.attacks.losses import dlr_toward, margin
from lustral.attacks.pgd import PGD
from lustral.attacks.search import Restarts
from lustral.core.adjoint import Checkpointed
from lustral.core.noise import Key
from lustral.core.threat import L2, Linf
from lustral.core.vote import MeanLogits
from lustral.defence import defend
from lustral.evaluate import witness
from lustral.evaluate.protocol import Chunk, Job, Memory, Stage, System, levels, pending, run
from lustral.evaluate.witness import Probe
from lustral.shell.options import Classification, Purification

IMAGES, MICRO_BATCH, KEY = 20, 32, Key(0)
L, TWO = Linf(3 / 16), L2(1.0)
GROWING = Growing(Checkpointed(), 2, 8, 0.9)
STAGES = [
    Stage("clean", None, 2),
    Stage("apgd", APGD(L, exact(2), margin, 5, 1, Selection(2)), 2),
    Stage("aimed", Targeted(APGD(L, exact(), dlr_toward, 3, 1, Selection(1)), 2), 2, after=("apgd",)),
    Stage("fab", Targeted(FAB(TWO, exact(2), 2, Selection(1), 1), 2), 2),
    Stage("growing", Restarts(PGD(TWO, GROWING, margin, 2, patience=1), 2), 2),
    Stage("known", APGD(TWO, exact(), margin, 4, 1), 2, "known"),
    Stage("worst", None, 2, choose=("clean", "apgd", "aimed"), threat=L),
]


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    """An undefended classifier, which few images resist, and a short diffusion with a vote."""
    systems = [
        system("undefended", Purification(method="none"), Classification(), MICRO_BATCH),
        system("diffpure", Purification(steps=1), Classification(vote="mean-softmax", draws=2), MICRO_BATCH),
    ]
    return [Job(each, stage, IMAGES) for each in systems for stage in STAGES]


def chunks(jobs: Sequence[Job], batch: int, only: set[int] | None, store: Memory) -> Iterator[Chunk]:
    for together in levels(jobs):
        for task in pending(together, digits(IMAGES), store, batch=batch, only=only):
            store.write(chunk := run(task, KEY))
            yield chunk


def collected(found: Sequence[Chunk]) -> tuple[dict, Counter]:
    """Every probe's numbers by (system, stage, image, kind, look); rows through networks by (system, stage, way)."""
    probes, rows = {}, Counter()
    for chunk in found:
        name = chunk.job.system.name, chunk.job.stage.name
        rows += Counter({(*name, "forward"): chunk.forward, (*name, "backward"): chunk.backward})
        for probe in chunk.probes:
            assert (*name, *probe[:3]) not in probes, "a probe's name is its own"
            probes[*name, *probe[:3]] = probe[3:]
    return probes, rows


@pytest.fixture(scope="module")
def reference(jobs) -> tuple[dict, Counter]:
    """In one batch."""
    return collected(list(chunks(jobs, 64, None, Memory())))


def test_there_is_something_to_compare(reference):
    probes, rows = reference
    kinds = Counter(kind for _, _, _, kind, _ in probes)
    assert set(kinds) == {"step", "across", "asked", "path", "later"}
    assert kinds["step"] > 150
    ids = digits(IMAGES).ids
    assert {image for _, _, image, kind, _ in probes if kind == "later"} == set(ids[[0, 16]].tolist())
    assert len({image for _, stage, image, kind, _ in probes if kind == "step" and stage == "apgd"}) > 10
    assert len({look for *_, look in probes}) > 6
    assert min(rows.values()) >= 0
    assert rows["undefended", "aimed", "forward"] < rows["undefended", "apgd", "forward"], "most images are left out"


@pytest.mark.parametrize("batch", [3])
def test_batches_change_no_probe_by_a_bit_and_no_count(batch, jobs, reference):
    assert collected(list(chunks(jobs, batch, None, Memory()))) == reference


def test_neither_do_shards_nor_an_interruption(jobs, reference):
    store, found, ids = Memory(), [], digits(IMAGES).ids.tolist()
    for shard, batch in ((ids[::2], 5), (ids[1::2], 64)):
        found += chunks(jobs, batch, set(shard), store)
    assert collected(found) == reference
    killed = Memory()
    part = list(islice(chunks(jobs, 4, None, killed), 30))
    rest = list(chunks(jobs, 64, None, killed))
    assert 0 < sum(len(chunk.ids) for chunk in part) < sum(len(chunk.ids) for chunk in rest)
    assert collected([*part, *rest]) == reference


def noisy(x: Tensor, rng) -> Tensor:
    return x + 0.1 * rng.normal(x)


def test_without_micro_batches_they_agree_to_rounding_and_in_their_names(jobs):
    net = jobs[0].system.defence.classifier.inner.inner
    several = [Job(System("s", defend(net, noisy, MeanLogits(2))), stage, IMAGES) for stage in STAGES[:2]]
    one, many = (collected(list(chunks(several, batch, None, Memory())))[0] for batch in (64, 3))
    assert one.keys() == many.keys()
    for name, numbers in one.items():
        if name[3] != "across":  # which is a quotient by what may be small
            assert torch.allclose(torch.tensor(numbers), torch.tensor(many[name]), rtol=0.05, atol=1e-3), name


def test_images_are_named_by_places_and_not_by_ids(jobs):
    data = digits(IMAGES)
    named = data._replace(ids=1000 + 64 * torch.arange(IMAGES))
    job = [Job(jobs[0].system, stage, IMAGES) for stage in STAGES[1:2]]
    (task,) = pending(job, named, Memory())
    tried = {(probe.image - 1000) // 64 for probe in run(task, KEY).probes if (probe.kind, probe.look) == ("step", 1)}
    assert tried == {place for place in range(IMAGES) if place < witness.FIRST or place % 4 in (1, 2)}
    (rest,) = pending(job, named, Memory(), only=set(named.ids[1::3].tolist()))
    assert list(rest.places) == list(range(1, IMAGES, 3))
    assert isinstance(run(rest, KEY).probes[0], Probe)
