"""The same evaluation gives the same ledger: to the bit with fixed micro-batches, nearly so without."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from digits import digits, plan

from lustral.core.noise import Key
from lustral.evaluate.protocol import Data, describe, evaluate
from lustral.shell.ledger import Ledger, Outcomes
from lustral.shell.options import Resources

IMAGES = 9
KEY = Key(0)


def ledger(path: Path, batches: Sequence[int], micro_batch: int | None, data: Data, **options) -> Ledger:
    """A ledger of the whole plan; where several batches are given, each does some chunks and is then stopped."""
    jobs = plan(IMAGES, micro_batch, **options)
    found = Ledger(path / f"{'-'.join(map(str, batches))}.sqlite", describe(jobs, data, KEY))
    for k, batch in enumerate(batches):
        chunks = evaluate(jobs, data, KEY, batch=batch, done=lambda job: found.done(job.system.name, job.stage.name))
        for count, chunk in enumerate(chunks):
            found.write(chunk)
            if count == 2 and k + 1 < len(batches):
                break
    return found


def outcomes(found: Ledger, **options) -> dict[tuple[str, str], Outcomes]:
    names = [(job.system.name, job.stage.name) for job in plan(IMAGES, None, **options)]
    return {name: found.outcomes(*name) for name in names}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Ledger:
    """In one batch of all images."""
    return ledger(tmp_path_factory.mktemp("reference"), [64], 8, digits(IMAGES))


def test_the_evaluation_is_not_trivial(reference):
    """Attacks move images and fool some draws, draws and systems differ: equal digests below mean something."""
    found = outcomes(reference)
    assert len(found) == 15
    assert (found["diffpure", "exact"].distance > 0.1).any()
    right = {name: (o.logits.argmax(dim=-1) == o.y[:, None]).float().mean().item() for name, o in found.items()}
    assert right["undefended", "exact"] < right["undefended", "clean"]
    assert float(found["diffpure", "clean"].logits.std(dim=1).min()) > 0
    assert len({float(o.logits.sum()) for o in found.values()}) == 15


@pytest.mark.parametrize(("batches", "budget"), [([1], 2.0), ([7], 0.0), ([2, 64], 2.0)], ids=str)
def test_batches_memory_and_interruptions_do_not_change_a_bit(reference, tmp_path, batches, budget):
    found = ledger(tmp_path, batches, 8, digits(IMAGES), resources=Resources(budget=budget))
    assert found.digest() == reference.digest()


def test_neighbours_and_order_do_not_change_a_bit(reference, tmp_path):
    turned = outcomes(ledger(tmp_path, [4], 8, digits(IMAGES)[torch.arange(IMAGES).flip(0)]))
    for name, found in outcomes(reference).items():
        for a, b in zip(found, turned[name], strict=True):
            assert torch.equal(a, b), name


def test_without_micro_batches_the_results_agree_nearly(tmp_path):
    """Rounding differs between batch sizes; without an attack nothing amplifies it, so all logits and labels agree."""
    options = {"stages": ("clean", "null")}
    one, many = (outcomes(ledger(tmp_path, [n], None, digits(IMAGES), **options), **options) for n in (1, 64))
    for name, found in one.items():
        assert torch.equal(found.x, many[name].x)
        assert torch.allclose(found.logits, many[name].logits, atol=2e-3), name
        assert torch.equal(found.logits.argmax(dim=-1), many[name].logits.argmax(dim=-1))
