"""Training in several processes, and measuring on the way."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from lustral.shell import weights
from lustral.shell.images import data
from lustral.shell.trainer import measures

OPTIONS = ["train", "denoiser", "--recipe.steps=12", "--recipe.batch=10", "--network.width=4", "--threads=1"]
OPTIONS += ["--recipe.optimiser=sgd", "--recipe.lr=0.05"]


def train(name: str, *program: str, options: list[str] = OPTIONS) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program, *options, f"{name}.safetensors"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_two_processes_train_the_network_of_one(tmp_path, monkeypatch):
    """To rounding, since sums are taken in another order; one of them writes and speaks.

    With SGD: Adam's first steps have the length of the rate in the direction of the gradient's sign, rounding or not.
    """
    monkeypatch.chdir(tmp_path)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "lustral"]
    assert train("one", "-m", "lustral").returncode == 0
    two = train("two", *torchrun)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("→ two.safetensors") == 1
    one, other = load_file("one.safetensors"), load_file("two.safetensors")
    assert all((one[name] - other[name]).abs().max() < 1e-5 for name in one)
    assert any((one[name] != other[name]).any() for name in one), "two processes that ran as one prove nothing"


def test_the_averaged_network_is_measured_on_the_way(lustral):
    arguments = [*OPTIONS, "--split=fit", "--check_every=5", "--noise.t_max=0.1"]
    assert lustral(*arguments, "net.safetensors") == 0
    with open(Path("net-checks.csv"), encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [row["step"] for row in rows] == ["5", "10"]
    assert all(0 < float(row["rmse_at_0.1"]) < 1 for row in rows)


def test_what_is_stored_in_half_precision_is_what_was_measured(lustral):
    assert lustral(*OPTIONS, "--recipe.stored=float16", "--noise.t_max=0.1", "net.safetensors") == 0
    assert {t.dtype for t in load_file("net.safetensors").values()} == {torch.float16}
    model, card = weights.load("net.safetensors", "denoiser")
    assert measures.denoising(model, data.load_bytes("digits", "test")) == card.measured
