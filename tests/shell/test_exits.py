"""How commands end that could not do what they were asked for, and what a newcomer's surroundings may lack."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from test_streams import QUICK

from lustral.shell import cli, exits

BARE = {"TMPDIR": "/nonexistent", "COLUMNS": "20", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


def shell(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """A line of a shell in which $LUSTRAL is the command, with neither HOME nor much else."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    known = kept | {"LUSTRAL": f"{sys.executable} -m lustral", "OMP_NUM_THREADS": "1"} | env
    return subprocess.run(["/bin/sh", "-c", line], cwd=cwd, env=known, capture_output=True, text=True)


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize("streams", [">&-", "<&-", "2>&-", ">&- 2>&- <&-"])
def test_a_closed_stream_stops_nothing(streams: str, tmp_path: Path):
    for args in ("list", "--help", "show digits-cnn"):
        made = shell(f"$LUSTRAL {args} {streams}", tmp_path)
        assert (made.returncode, "Traceback" in made.stderr) == (0, False)
    assert (
        shell(f"$LUSTRAL evaluate run {' '.join(QUICK).replace('[clean]', 'clean')} {streams}", tmp_path).returncode
        == 0
    )
    assert (tmp_path / "run/report.html").exists()
    assert shell(f"$LUSTRAL show nosuch {streams}", tmp_path).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_no_file_is_opened_in_the_place_of_a_closed_stream(tmp_path: Path):
    """Whatever a library says on standard error would go into it."""
    code = "from lustral.shell import streams; streams.prepare(); assert open('x', 'w').fileno() > 2"
    assert shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-', tmp_path).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_a_narrow_terminal_without_a_home_stops_nothing(tmp_path: Path):
    for args in ("list", "--help", f"evaluate run {' '.join(QUICK)}", "show run"):
        made = shell(f"$LUSTRAL {args}", tmp_path, **BARE)
        assert made.returncode == 0, made.stderr


def test_errors_of_the_system_name_the_file_or_the_output():
    full = exits.explained(OSError(errno.ENOSPC, "No space left on device"), [])
    assert full == (
        "Cannot write what this command says (no space left on device); what it wrote to files is there.",
        1,
    )
    named = exits.explained(OSError(errno.ENOSPC, "No space left on device", "x.npz"), [])
    assert named == ("x.npz: no space left on device; free some space, or choose another place.", 2)


def test_no_place_for_temporary_files_is_one_sentence(tmp_path: Path, monkeypatch, capsys):
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert cli.main(["controls", "--images=1"]) == 2
    assert capsys.readouterr().err.endswith(
        "lustral: no usable temporary directory found in ['/tmp']; free some space, or choose another place.\n"
    )
