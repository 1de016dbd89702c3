"""kill -9 at any moment: the same command goes on, and ends where an uninterrupted one does."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lustral.shell import weights
from lustral.shell.cli import main

IMAGES = 8
STAGES = ("clean", "null", "exact", "fixed")
EVALUATION = [
    f"--images={IMAGES}",
    f"--stages=[{','.join(STAGES)}]",
    "--purification.steps=3",
    "--search.steps=3",
    "--search.eot=2",
    "--draws=4",
    "--micro_batch=32",
]
SUITE = ["--suite=smoke", "--images=4", "--purification.steps=2", "--micro_batch=32"]
TRAINING = ["--network.width=8", "--recipe.steps=80", "--recipe.batch=16", "--threads=1"]
# Each takes what it runs from a fork that kills itself at its own moment, so that none is missed on a busy machine.
FORKS = """
import json, os, signal, sys
import lustral.shell.plan, lustral.shell.runner
from lustral.shell.cli import main
from lustral.shell.ledger import Ledger
from lustral.shell.trainer import fit

def die():
    os.kill(os.getpid(), signal.SIGKILL)

{arm}
for moment in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        arm(moment)
        os._exit(main(sys.argv[2:]))
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (moment, status)
"""
# A moment is a number of chunks that are written, and whether the next is lost on its way into the ledger.
AT_CHUNK = """
def arm(moment):
    (left, losing), write = moment, Ledger.write
    def dying(self, chunk):
        nonlocal left
        if losing and left == 0:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM costs")
            die()
        write(self, chunk)
        left -= 1
        if left == 0 and not losing:
            die()
    Ledger.write = dying
"""
# A moment is a stage, of whose first image the process dies.
AT_STAGE = """
def arm(moment):
    write = Ledger.write
    def dying(self, chunk):
        write(self, chunk)
        if chunk.job.stage.name == moment:
            die()
    Ledger.write = dying
"""
# A moment is a step, and whether the process dies before it is saved.
AT_STEP = """
def arm(moment):
    (last, losing), save = moment, fit.weights.save_checkpoint
    fit.SAVE_EVERY = 0.0
    def dying(path, state):
        if losing and state["step"] >= last:
            die()
        save(path, state)
        if state["step"] >= last:
            die()
    fit.weights.save_checkpoint = dying
"""


@pytest.fixture(autouse=True)
def _threads():
    """The commands below set the number of threads of this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def killed_at(moments: list, arm: str, args: list[str]) -> None:
    """Runs a command as often as there are moments, and each time it is killed."""
    program = ["-c", FORKS.format(arm=arm), json.dumps(moments), *args]
    subprocess.run([sys.executable, *program], stdout=subprocess.DEVNULL, check=True)


def finished(folder: Path) -> int:
    """Images in the ledger, over all stages."""
    try:
        with sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True) as db:
            return db.execute("SELECT COUNT(*) FROM candidates").fetchone()[0]
    except sqlite3.OperationalError:  # there is no ledger yet, or no table in it
        return -1


def test_an_evaluation_killed_five_times_ends_with_the_same_ledger(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["evaluate", str(whole), *EVALUATION, "--resources.threads=1"]) == 0
    moments = [(1, False), (0, True), (2, True), (3, False), (1, True)]
    killed_at(moments, AT_CHUNK, ["evaluate", str(killed), *EVALUATION, "--resources.batch=2", "--resources.threads=2"])
    assert 0 < finished(killed) < IMAGES * len(STAGES)
    assert main(["evaluate", str(killed), *EVALUATION, "--resources.batch=7"]) == 0
    found, expected = (json.loads((place / "results.json").read_text()) for place in (killed, whole))
    assert found["ledger_digest"] == expected["ledger_digest"]
    same = ("accuracy", "low", "high", "single_draw", "worst_of", "majority_of", "mean_logit_of", "max_distance")
    for a, b in zip(found["rows"], expected["rows"], strict=True):
        assert {name: a[name] for name in same} == {name: b[name] for name in same}


def stage_holds(folder: Path, stage: str) -> int:
    """Images in the ledger under one stage."""
    try:
        with sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True) as db:
            return db.execute("SELECT COUNT(*) FROM candidates WHERE stage = ?", (stage,)).fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def test_a_suite_killed_in_the_middle_of_every_stage_ends_with_the_same_ledger(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["evaluate", str(whole), *SUITE, "--resources.threads=1"]) == 0
    expected = json.loads((whole / "results.json").read_text())
    with sqlite3.connect(whole / "ledger.sqlite") as db:
        stages = [stage for (stage,) in db.execute("SELECT stage FROM costs GROUP BY stage ORDER BY MIN(rowid)")]
    assert {"clean", "null", "unbounded", "transfer", "apgd-margin", "worst"} <= set(stages)
    killed_at(stages, AT_STAGE, ["evaluate", str(killed), *SUITE, "--resources.batch=1", "--resources.threads=1"])
    inside = [stage for stage in stages if stage_holds(killed, stage) < stage_holds(whole, stage)]
    assert inside == stages[-1:]
    assert main(["evaluate", str(killed), *SUITE, "--resources.batch=3"]) == 0
    found = json.loads((killed / "results.json").read_text())
    assert found["ledger_digest"] == expected["ledger_digest"]
    assert [row["accuracy"] for row in found["rows"]] == [row["accuracy"] for row in expected["rows"]]


TASKS = {
    "classifier": ["classifier", *TRAINING, "--network.kind=resnet"],
    "addt": ["addt", *TRAINING, "--recipe.steps=40"],
}


@pytest.mark.parametrize("task", TASKS)
def test_a_training_killed_three_times_ends_with_the_same_weights(task, tmp_path):
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    checkpoint = killed.with_suffix(".checkpoint")
    name, *options = TASKS[task]
    assert main(["train", name, str(whole), *options]) == 0

    killed_at([(1, False), (12, True), (25, False)], AT_STEP, ["train", name, str(killed), *options])
    assert weights.load_checkpoint(checkpoint)["step"] == 25
    assert not killed.exists()
    assert main(["train", name, str(killed), *options]) == 0
    assert killed.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()
