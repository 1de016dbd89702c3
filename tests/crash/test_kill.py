"""kill -9 at any moment: the same command goes on, and ends where an uninterrupted one does."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
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
SAVING_ALWAYS = (
    "from lustral.shell.trainer import fit; fit.SAVE_EVERY = 0.0; from lustral.shell.cli import entry; entry()"
)
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _threads():
    """The commands below set the number of threads of this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def kill_when(reached: Callable[[], bool], program: list[str], pause: float) -> bool:
    """Starts a program, kills it ``pause`` seconds after a condition holds, and says whether it still ran then."""
    process = subprocess.Popen([sys.executable, *program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE
    while process.poll() is None and not reached() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


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
    chance, seen = random.Random(5), []
    # From the creation of the ledger to the last stage, and a few milliseconds on.
    for after, batch in zip((0, 1, *sorted(chance.sample(range(2, 3 * IMAGES), 3))), (1, 3, 2, 5, 4), strict=True):
        spent = [f"--resources.batch={batch}", "--resources.threads=2"]
        program = ["-m", "lustral", "evaluate", str(killed), *EVALUATION, *spent]
        assert kill_when(lambda after=after: finished(killed) >= after, program, chance.uniform(0, 0.03))
        seen.append(finished(killed))
    assert 0 <= seen[0] <= seen[1] <= seen[2] <= seen[3] <= seen[4] < IMAGES * len(STAGES)
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
    killed_inside = 0
    for stage in stages:
        spent = ["--resources.batch=1", "--resources.threads=1"]
        program = ["-m", "lustral", "evaluate", str(killed), *SUITE, *spent]
        assert kill_when(lambda stage=stage: stage_holds(killed, stage) >= 1, program, 0)
        killed_inside += stage_holds(killed, stage) < stage_holds(whole, stage)
    assert killed_inside >= len(stages) // 2, "most kills must fall inside their stage"
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

    def step() -> int:
        return weights.load_checkpoint(checkpoint)["step"] if checkpoint.exists() else 0

    program = ["-c", SAVING_ALWAYS, "train", name, str(killed), *options]
    for moment in (1, 12, 25):
        assert kill_when(lambda moment=moment: step() >= moment, program, pause=0.004)
        assert moment <= step() < 40
        assert not killed.exists()
    assert main(["train", name, str(killed), *options]) == 0
    assert killed.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()
