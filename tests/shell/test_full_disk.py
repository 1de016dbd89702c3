"""A disk that is full or closed is said in one sentence, and nothing is half-written or lost."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lustral.shell import weights
from lustral.shell.trainer import fit
from mistakes import PNG, TRAIN, after, evaluate, picture, purify, said, save, text

# What is prepared, giving the arguments; and how many bytes a file may have.
FULL: dict[str, tuple[Callable[[], list[str]], int]] = {
    "npy": (lambda: purify(), 600),
    "npz": (lambda: after(["purify", "data.npz", "out.npz", "--purification.steps=1"], save()), 600),
    "png": (lambda: after(PNG, picture()), 600),
    "jpeg": (lambda: after(["purify", "in.jpg", "out.jpg", "--purification.steps=1"], picture("in.jpg")), 600),
    "attack": (lambda: ["attack", "out.npz", "--images=2", "--stage=clean", "--purification.steps=1"], 600),
    "weights": (lambda: TRAIN, 600),
    "card": (
        lambda: [*TRAIN[:2], "tiny.safetensors", "--network.width=2", "--recipe.steps=1", "--recipe.batch=2"],
        600,
    ),
}


@pytest.mark.parametrize(("prepare", "size"), FULL.values(), ids=FULL.keys())
def test_a_full_disk_is_said_and_leaves_nothing(prepare, size, lustral, full_disk, tmp_path, tree, capfd):
    args = prepare()
    before = tree(tmp_path)
    with full_disk(size):
        assert lustral(*args) == 2
    *_, sentence = capfd.readouterr().err.splitlines()
    assert sentence.startswith("lustral: Cannot write ")
    assert "free some space or choose another place" in sentence
    assert tree(tmp_path) == before


def test_a_full_disk_keeps_the_checkpoint_before(lustral, full_disk, monkeypatch, tmp_path, tree, capfd):
    monkeypatch.setattr(fit, "SAVE_EVERY", 0.0)
    weights.save_checkpoint(Path("other.checkpoint"), {"x": torch.zeros(9)})
    before = tree(tmp_path)
    with full_disk(4000):
        assert lustral(*TRAIN) == 2
    assert "Cannot write net.checkpoint" in capfd.readouterr().err
    assert tree(tmp_path) == before


def test_a_disk_that_fills_up_at_the_last_moment_keeps_the_old_file(lustral, monkeypatch, tmp_path, tree, capfd):
    args = purify()
    text("out.npy", "old")
    before = tree(tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert lustral(*args) == 2
    assert "Cannot write out.npy: no space left on device; free some space" in said(capfd)
    assert tree(tmp_path) == before


def test_a_folder_without_rights_is_said(lustral, monkeypatch, tmp_path, tree, capfd):
    """By the error that the system gives to users other than root."""
    args = purify()
    before = tree(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert lustral(*args) == 2
    assert "Cannot write out.npy: permission denied; choose another place" in said(capfd)
    assert tree(tmp_path) == before


def test_an_evaluation_on_a_full_disk_says_so_and_goes_on_later(lustral, full_disk, capfd):
    with full_disk(30_000):
        assert lustral(*evaluate("--images=40", "--resources.batch=4")) == 2
    *_, sentence = capfd.readouterr().err.splitlines()
    assert sentence.startswith("lustral: Cannot use the ledger run/ledger.sqlite")
    assert "disk" in sentence
    assert lustral(*evaluate("--images=40")) == 0
    files = {p.name for p in Path("run").iterdir()} - {"ledger.sqlite-wal", "ledger.sqlite-shm"}  # SQLite's own
    assert files == {"ledger.sqlite", "run.json", "results.json", "pictures.npz", "report.html"}


def test_a_broken_picture_in_a_folder_leaves_no_scratch_files(lustral, capfd):
    Path("in").mkdir()
    picture("in/a.png")
    text("in/b.png", "no picture")
    assert lustral("purify", "in", "out", "--purification.steps=1") == 2
    assert "in/b.png" in capfd.readouterr().err
    assert [p.name for p in Path("out").iterdir()] == ["a.png"]
