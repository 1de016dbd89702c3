"""What a killed process leaves half written is taken away by the next one, and nothing else is."""

import subprocess
import sys
from pathlib import Path

import pytest

from lustral.shell import scratch
from lustral.shell.cli import main
from lustral.shell.files import write_text
from lustral.shell.images.pictures import pairs
from mistakes import picture

KILLED = """
import os, signal, sys
from pathlib import Path
from lustral.shell import scratch
from lustral.shell.files import replacing, write_text
with scratch.unkept() as folder:
    (folder / "ledger.sqlite").touch()
    with replacing(Path(sys.argv[1])) as half:
        half.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def killed(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Two folders, of results and of temporary files, in which a process was killed while it wrote."""
    kept, temporary = tmp_path / "kept", tmp_path / "temporary"
    kept.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    subprocess.run([sys.executable, "-c", KILLED, str(kept / "a.png")])
    assert len(names(kept)) == len(names(temporary)) == 1
    return kept, temporary


def test_the_next_start_takes_away_what_a_killed_process_left(killed):
    kept, temporary = killed
    write_text(kept / "b.txt", "whole")
    with scratch.unkept():
        assert len(names(temporary)) == 1
    assert names(kept) == {"b.txt"}
    assert names(temporary) == set()


def test_what_lives_or_is_not_ours_stays(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    machine, pid = scratch._machine(), gone.stdout.strip()
    others = {
        ".secret-note.txt",
        f".lustral-{machine}-{pid}.txt",
        f".lustral-00000000-{pid}-0123abcd-x.txt",  # of another machine that shares the folder
        f".lustral-{machine}-1-0123abcd-x.txt",  # of a process that runs
        scratch.new(".txt", tmp_path).name,  # of this one
    }
    dead = {f".lustral-{machine}-{pid}-0123abcd-x.txt", f".lustral-{machine}-{scratch.os.getpid()}-0123abcd-x.txt"}
    for name in others | dead:
        (tmp_path / name).touch()
    scratch.sweep.__wrapped__(tmp_path)
    assert names(tmp_path) == others


def test_what_a_killed_process_left_is_no_input_and_moves_no_noise(killed, tmp_path):
    kept, _ = killed
    for name in ("a.png", "b.png"):
        picture(str(kept / name))
    left = (names(kept) - {"a.png", "b.png"}).pop()
    assert left.startswith(".")
    assert [path.name for path, _ in pairs(kept, tmp_path / "out")] == ["a.png", "b.png"]
    assert main(["purify", str(kept), str(kept), "--purification.steps=1"]) == 2, "not over its input"
    write_text(kept / "c.txt", "whole")
    assert names(kept) == {"a.png", "b.png", "c.txt"}
