"""The same evaluation gives the same ledger: to the bit with fixed micro-batches, nearly so without."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from digits import digits, plan
from lustral.core.noise import Key
from lustral.shell import runner
from lustral.shell.ledger import Ledger
from lustral.shell.options import Resources
from lustral.shell.tables import Outcomes
from lustral.shell.terminal import Log

IMAGES, MICRO_BATCH = 9, 8
KEY = Key(0)
ALL, EVERYTHING = slice(None), Resources(batch=64, threads=1)


def execute(folder: Path, resources: Resources, micro_batch: int | None = MICRO_BATCH, rows=ALL) -> Ledger:
    """The ledger of the whole plan."""
    jobs, data = plan(IMAGES, micro_batch, resources), digits(IMAGES)[rows]
    ledger = runner.open_ledger(jobs, data, KEY, folder)
    runner.execute(jobs, data, KEY, ledger, resources)
    return ledger


def outcomes(ledger: Ledger) -> dict[tuple[str, str], Outcomes]:
    names = [(job.system.name, job.stage.name) for job in plan(IMAGES, None)]
    return {name: ledger.outcomes(*name) for name in names}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Ledger:
    """In one batch of all images, one after another."""
    return execute(tmp_path_factory.mktemp("reference"), EVERYTHING)


def test_the_evaluation_is_not_trivial(reference):
    """Attacks move images and fool some draws, draws and systems differ: equal digests below mean something."""
    found = outcomes(reference)
    assert len(found) == 15
    assert (found["diffpure", "exact"].distance > 0.1).any()
    right = {name: (o.logits.argmax(dim=-1) == o.y[:, None]).float().mean().item() for name, o in found.items()}
    assert right["undefended", "exact"] < right["undefended", "clean"]
    assert float(found["diffpure", "clean"].logits.std(dim=1).min()) > 0
    assert len({float(o.logits.sum()) for o in found.values()}) == 15


@pytest.mark.parametrize(
    "resources",
    [Resources(batch=1, threads=1), Resources(batch=7, budget=0.0, threads=3)],
    ids=["one by one", "side by side without memory"],
)
def test_what_may_be_spent_does_not_change_a_bit(reference, tmp_path, resources):
    assert execute(tmp_path, resources).digest() == reference.digest()


def test_an_interruption_does_not_change_a_bit(reference, tmp_path, monkeypatch, capsys):
    calls, run = [], runner.run

    def interrupted(task, key):
        calls.append(task)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return run(task, key)

    monkeypatch.setattr(runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path, Resources(batch=2, threads=2))
    monkeypatch.setattr(runner, "run", run)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        done = sum(len(ledger.done(job.system.name, job.stage.name)) for job in plan(IMAGES, None))
    assert 0 < done < 15 * IMAGES
    capsys.readouterr()
    monkeypatch.setattr(runner, "progress", lambda: Log(soon=-1.0))
    assert execute(tmp_path, EVERYTHING).digest() == reference.digest()
    share, said = capsys.readouterr().err.splitlines()[0].strip().split("% starting, 0 s, ")
    assert 0 < int(share) < 100, "what is done already is on the bar"
    assert said == "time left unknown", "and tells nothing of the speed"
    assert execute(tmp_path, EVERYTHING).digest() == reference.digest()
    assert {line.strip() for line in capsys.readouterr().err.splitlines()} == {"100% starting, 0 s, 0 s left"}


def test_neighbours_and_order_do_not_change_a_bit(reference, tmp_path):
    turned = execute(tmp_path, Resources(batch=4, threads=2), rows=[*reversed(range(IMAGES))])
    for name, found in outcomes(reference).items():
        other = outcomes(turned)[name]
        for a, b in zip(found[:9], other[:9], strict=True):
            assert torch.equal(a, b), name
        for a, b in zip([*found.losses, *found.wrongs], [*other.losses, *other.wrongs], strict=True):
            assert np.array_equal(a, b), name


def test_without_micro_batches_the_results_agree_nearly(reference, tmp_path):
    """Rounding differs between batch sizes; without an attack nothing amplifies it, so all logits and labels agree."""
    found = outcomes(execute(tmp_path, EVERYTHING, micro_batch=None))
    for name, expected in outcomes(reference).items():
        if name[1] in ("clean", "null"):
            assert torch.equal(found[name].x, expected.x)
            assert torch.allclose(found[name].logits, expected.logits, atol=2e-3), name
            assert torch.equal(found[name].logits.argmax(dim=-1), expected.logits.argmax(dim=-1))


def test_workers_are_as_many_as_the_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert runner.cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert runner.cores() == os.cpu_count()
