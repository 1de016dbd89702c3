"""Where lines leave the program: hostile names steer no terminal, and a stream that fails costs one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digits import digits
from lustral.shell.streams import plain

ESCAPE = "\x1b[31mred\x07\u202edne"
SPELT = r"\x1b[31mred\x07\u202edne"
QUICK = ["--images=2", "--stages=[clean]", "--draws=1", "--purification.method=none", "--resources.threads=1"]


def lustral(*args: str | bytes, cwd: Path, env: dict | None = None, **rest) -> subprocess.CompletedProcess:
    """What a process of its own says, as bytes."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | rest
    line = [sys.executable, "-m", "lustral", *args]
    return subprocess.run(line, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}), **streams)


def told(made: subprocess.CompletedProcess) -> str:
    return ((made.stdout or b"") + (made.stderr or b"")).decode()


def hostile(said: str) -> list[str]:
    """The characters in it that are more than text and lines."""
    return [c for c in said if not c.isprintable() and c != "\n"]


def test_what_does_not_print_is_spelt_out():
    assert plain(ESCAPE) == SPELT
    assert plain("a\nb\tc\x9b\udce9\x7f") == r"a\nb\tc\x9b\udce9\x7f"
    assert plain("Größe 8×8 → 71\u202f% \u00a0 数") == "Größe 8×8 → 71\u202f% \u00a0 数"


def test_a_system_s_name_steers_no_terminal(tmp_path: Path):
    systems = json.dumps({ESCAPE: {"purification": {"method": "none"}}})
    made = lustral("evaluate", "run", f"--systems={systems}", *QUICK, cwd=tmp_path)
    assert made.returncode == 0, told(made)
    assert SPELT in made.stdout.decode()
    assert not hostile(told(made))
    assert not hostile((tmp_path / "run/report.html").read_text(encoding="utf-8"))
    assert ESCAPE in (json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))["random"])


def test_names_of_files_and_mistakes_are_spelt_out(tmp_path: Path):
    for args in (["show", f"{ESCAPE}/x.safetensors"], ["evaluate", "run", f"--data={ESCAPE}/x.npz"], [ESCAPE]):
        made = lustral(*args, cwd=tmp_path)
        assert made.returncode == 2
        assert r"\x1b[31m" in told(made)
        assert not hostile(told(made))
        assert "Traceback" not in told(made)


def test_a_card_is_spelt_out(tmp_path: Path):
    about = {"name": "x", "kind": "denoiser", "architecture": {}, "data": ESCAPE, "image": [1, 8, 8]}
    about["command"] = "\x9bm"
    (tmp_path / "x.safetensors").write_bytes(b"")
    (tmp_path / "x.json").write_text(json.dumps(about))
    made = lustral("show", "x.safetensors", cwd=tmp_path)
    assert made.returncode == 0
    assert r"\u001b[31mred\u0007" in told(made)
    assert not hostile(told(made))
    assert lustral("show", "digits-cnn", cwd=tmp_path).stdout.startswith(b'{\n  "name": "digits-cnn"')


def test_an_error_that_nobody_caught_is_spelt_out(tmp_path: Path):
    code = "from lustral.shell import streams\nstreams.prepare()\nraise RuntimeError('\\x1b[31m\\nend')"
    made = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, check=False)
    assert b"RuntimeError: \\x1b[31m\nend\n" in made.stderr
    assert b"\x1b" not in made.stderr


ENCODINGS = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0"},
}


@pytest.mark.parametrize("env", ENCODINGS.values(), ids=ENCODINGS)
def test_an_encoding_without_arrows_stops_nothing(env: dict, tmp_path: Path):
    commands = (["list"], ["show", "digits-cnn"], ["--help"], ["evaluate", "--help"], ["evaluate", "run", *QUICK])
    for args in commands:
        made = lustral(*args, cwd=tmp_path, env=env)
        assert made.returncode == 0, made.stderr
    assert b"-> run" in made.stdout  # for an arrow
    assert lustral("show", "run", cwd=tmp_path, env=env).returncode == 0
    wrong = lustral("show", "für", cwd=tmp_path, env=env)
    assert wrong.returncode == 2
    assert b"Traceback" not in wrong.stderr


SAYING = [["list"], ["show", "digits-cnn"], ["--help"], ["evaluate", "--help"], ["--version"]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("args", [*SAYING, ["evaluate", "run", *QUICK]], ids=lambda args: args[0])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_the_output_is_one_sentence(args: list[str], unbuffered: str, tmp_path: Path):
    with open("/dev/full", "wb") as full:
        made = lustral(*args, cwd=tmp_path, env={"PYTHONUNBUFFERED": unbuffered}, stdout=full)
    last = made.stderr.decode().splitlines()
    assert made.returncode == 1
    assert "Traceback" not in "".join(last)
    assert "Exception" not in "".join(last)
    said = "lustral: Cannot write what this command says (no space left on device); what it wrote to files is there."
    assert last[-1] == said
    assert args[0] == "evaluate" or len(last) == 1


@pytest.mark.parametrize("args", SAYING, ids=lambda args: args[0])
def test_a_closed_pipe_is_one_sentence(args: list[str], tmp_path: Path):
    read, write = os.pipe()
    os.close(read)
    made = lustral(*args, cwd=tmp_path, stdout=write)
    os.close(write)
    said = b"lustral: Cannot write what this command says (broken pipe); what it wrote to files is there.\n"
    assert made.returncode == 1
    assert made.stderr == said


def test_a_full_disk_behind_errors_changes_no_exit_code(tmp_path: Path):
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            assert lustral("show", "nosuch", cwd=tmp_path, stderr=full).returncode == 2


def test_a_class_folder_that_is_no_text_costs_no_evaluation(tmp_path: Path):
    x = (255 * digits(8).x[:, 0]).round().numpy().astype(np.uint8)
    for i, image in enumerate(x):
        place = os.fsencode(tmp_path) + b"/set/" + (b"caf\xe9" if i % 2 else b"tea")
        os.makedirs(place, exist_ok=True)
        with open(place + b"/%d.png" % i, "wb") as f:
            Image.fromarray(image).save(f, format="PNG")
    small = ["--recipe.steps=1", "--network.width=4", "--recipe.batch=4", "--threads=1"]
    made = lustral("train", "classifier", "own.safetensors", "--data=set", *small, cwd=tmp_path)
    assert made.returncode == 0, told(made)
    own = ["--data=set", "--classification.classifier=own.safetensors", "--threat.eps=0.1"]
    made = lustral("evaluate", "run", *own, *QUICK, cwd=tmp_path)
    assert made.returncode == 0, told(made)
    assert "caf\\udce9" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))
    assert found["data"]["classes"] == ["caf\udce9", "tea"]
    assert lustral("show", "run", cwd=tmp_path).returncode == 0
    assert lustral("verify", "run", cwd=tmp_path).returncode == 0
