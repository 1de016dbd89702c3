"""Mistakes that people make, for the tests of what they are told: what is prepared gives the arguments of a command."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from digits import digits
from lustral.shell import weights
from lustral.shell.cli import main

PNG = ["purify", "in.png", "out.png", "--purification.steps=1"]
PURIFY = ["purify", "in.npy", "out.npy", "--purification.steps=1"]
EVALUATE = ["evaluate", "run", "--images=2", "--stages=[clean,exact]", "--purification.steps=1", "--search.steps=1"]
EVALUATE += ["--search.eot=1", "--draws=1"]
TRAIN = ["train", "classifier", "net.safetensors", "--recipe.steps=1", "--network.width=4", "--recipe.batch=4"]
OWN = ["--classification.classifier=digits-cnn", "--purification.denoiser=digits-unet", "--threat.eps=3/16"]
MARKER = "pwned"


class Evil:
    """Unpickling this creates a file."""

    def __reduce__(self):
        return os.mkdir, (MARKER,)


def images() -> np.ndarray:
    return digits(4).x.numpy()


def save(**arrays: np.ndarray) -> None:
    np.savez("data.npz", **{"x": images(), "y": digits(4).y.numpy()} | arrays)


def write(array: np.ndarray, args: list[str] = PURIFY) -> list[str]:
    np.save("in.npy", array, allow_pickle=True)
    return args


def purify(*options: str) -> list[str]:
    return write(images(), [*PURIFY, *options])


def evaluate(*options: str) -> list[str]:
    return [*EVALUATE, *options]


def with_data(**arrays: np.ndarray) -> list[str]:
    save(**arrays)
    return evaluate("--data=data.npz", "--images=4", *OWN)


def cut(name: str, share: float = 0.5) -> None:
    """Damages a file by leaving out its end."""
    content = Path(name).read_bytes()
    Path(name).write_bytes(content[: int(len(content) * share)])


def picture(name: str = "in.png", **save_options) -> None:
    Image.fromarray((np.indices((64, 64)).sum(axis=0) * 2).astype(np.uint8)).save(name, **save_options)


def sha256(name: str) -> str:
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def weights_file(change: Callable[[dict], dict] = dict, cut_to: float = 1.0, honest: bool = True) -> list[str]:
    """A copy of the shipped denoiser, its card changed, its end cut off, its sha256 honest or not."""
    source = weights.find("digits-unet")
    Path("own.safetensors").write_bytes(source.read_bytes())
    cut("own.safetensors", cut_to)
    facts = json.loads(source.with_suffix(".json").read_text())
    if honest:
        facts["sha256"] = sha256("own.safetensors")
    Path("own.json").write_text(json.dumps(change(facts)))
    return purify("--purification.denoiser=own.safetensors")


def evil(name: str, card: bool = False) -> None:
    Path(name).write_bytes(pickle.dumps(Evil()))
    if card:
        facts = json.loads(weights.find("digits-unet").with_suffix(".json").read_text())
        Path(name).with_suffix(".json").write_text(json.dumps(facts | {"sha256": sha256(name)}))


def a_run(**found) -> None:
    """What is left of a run: results.json, and pictures."""
    Path("run").mkdir()
    Path("run/results.json").write_text(json.dumps(found))
    np.savez("run/pictures.npz", y=np.zeros(1))


def foreign_run() -> list[str]:
    assert main(evaluate("--stages=[clean]")) == 0
    return evaluate("--stages=[clean]", "--seed=5")


def foreign_checkpoint() -> list[str]:
    weights.save_checkpoint(
        Path("net.checkpoint"),
        {"identity": {"task": "classifier"}, "model": {}, "optimiser": {}, "average": {}, "step": 3},
    )
    return TRAIN


def after(args: list[str], *steps: object) -> list[str]:
    """The arguments, once the steps beside them (already evaluated) have prepared the folder."""
    return args


def text(name: str, content: str | bytes) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


Cases = dict[str, tuple[Callable[[], list[str]], list[str]]]


def said(capfd) -> str:
    """The one line on stderr."""
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("lustral: ")
    return lines[0]


def check(args: list[str], words: list[str], lustral, folder: Path, tree, capfd) -> None:
    """The command ends with exit code 2 and one sentence that holds the words, and leaves no file behind."""
    before = tree(folder)
    capfd.readouterr()
    assert lustral(*args) == 2
    sentence = said(capfd)
    for word in words:
        assert word in sentence
    assert tree(folder) == before
    assert not Path(MARKER).exists()
