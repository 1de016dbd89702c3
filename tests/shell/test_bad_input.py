"""Wrong input of every kind ends in exit code 2 and one sentence that says what to do, and leaves no file behind."""

import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lustral as library
from digits import digits
from lustral.core.errors import UserError
from lustral.core.threat import Linf
from lustral.shell import build, commands, data, tasks, weights
from lustral.shell.cli import main
from lustral.shell.options import Classification, Purification, Resources, Search, ThreatModel
from lustral.training.recipe import Recipe

PNG = ["purify", "in.png", "out.png", "--purification.steps=1"]
PURIFY = ["purify", "in.npy", "out.npy", "--purification.steps=1"]
EVALUATE = ["evaluate", "run", "--images=2", "--stages=[clean,exact]", "--purification.steps=1", "--search.steps=1"]
EVALUATE += ["--search.eot=1", "--draws=1"]
TRAIN = ["train", "classifier", "net.safetensors", "--recipe.steps=1", "--width=4", "--recipe.batch=4"]
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
    return evaluate("--data=data.npz", "--images=4")


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


# What is prepared, giving the arguments; and what the sentence must contain.
CASES: dict[str, tuple[Callable[[], list[str]], list[str]]] = {
    "images: two axes": (lambda: write(images()[0, 0]), ["in.npy", "[n, c, h, w]", "(8, 8)"]),
    "images: 0 to 255": (lambda: write(255 * images()), ["in.npy", "[0, 1]", "divide by 255"]),
    "images: -1 to 1": (lambda: write(2 * images() - 1), ["in.npy", "map [-1, 1] by (x + 1) / 2"]),
    "images: NaN": (lambda: write(images() * np.nan), ["in.npy", "NaN"]),
    "images: 64-bit integers": (lambda: write(images().astype(np.int64)), ["in.npy", "8-bit", "int64"]),
    "images: pickled objects": (lambda: write(np.array([Evil()])), ["in.npy", "pickled objects", "never loaded"]),
    "images: three channels": (lambda: write(images().repeat(3, axis=1)), ["in.npy", "3 channels", "digits-unet"]),
    "images: odd sides": (lambda: write(images()[:, :, :7]), ["in.npy", "7×8", "multiples of 4", "pad or resize"]),
    "images: sides that the network cannot halve": (lambda: write(images()[:, :, :, :6]), ["8×6", "multiples of 4"]),
    "npy: missing": (lambda: PURIFY, ["Cannot read in.npy", "check the path"]),
    "npy: truncated": (lambda: after(write(images()), cut("in.npy")), ["in.npy", "damaged"]),
    "npy: empty": (lambda: after(PURIFY, text("in.npy", "")), ["in.npy", "damaged"]),
    "npz: truncated": (
        lambda: after(["purify", "data.npz", "out.npz"], save(), cut("data.npz")),
        ["data.npz", "damaged"],
    ),
    "npz: no x": (
        lambda: after(["purify", "other.npz", "out.npz"], np.savez("other.npz", z=images())),
        ["other.npz", "named x", "holds z"],
    ),
    "png: truncated": (
        lambda: after(PNG, picture(), cut("in.png")),
        ["in.png", "damaged"],
    ),
    "png: a text": (lambda: after(PNG, text("in.png", "hello")), ["in.png", "no picture"]),
    "png: 16 bits": (
        lambda: after(PNG, Image.fromarray(np.full((8, 8), 999, np.uint16)).save("in.png")),
        ["in.png", "8 bits"],
    ),
    "source: a text": (
        lambda: after(["purify", "in.txt", "out.txt"], text("in.txt", "x")),
        ["in.txt", "PNG, JPEG, npy or npz"],
    ),
    "source: no images in it": (lambda: after(["purify", "in", "out"], text("in/a.txt", "x")), ["in holds no images"]),
    "target: another format": (lambda: write(images(), ["purify", "in.npy", "out.npz"]), ["name the output out.npy"]),
    "target: a file for a folder": (
        lambda: after(["purify", "in", "out.png"], Path("in").mkdir(), picture("in/a.png"), picture("out.png")),
        ["in is a folder", "out.png must be one too"],
    ),
    "target: below a file": (
        lambda: write(images(), ["purify", "in.npy", "in.npy/out.npy", *PURIFY[3:]]),
        ["Cannot write", "check the path"],
    ),
    "target: nowhere": (
        lambda: write(images(), ["purify", "in.npy", "/proc/none/out.npy", *PURIFY[3:]]),
        ["Cannot write", "check the path"],
    ),
    "purify: t* of 100 steps": (
        lambda: purify("--purification.t_star=100"),
        ["t_star", "(0, 1]", "did you mean t_star=0.1?"],
    ),
    "purify: t* of 0": (lambda: purify("--purification.t_star=0"), ["t_star", "(0, 1]", "not 0"]),
    "purify: t* beyond the denoiser": (
        lambda: purify("--purification.t_star=1"),
        ["t_star=1", "choose a smaller t_star"],
    ),
    "purify: no steps": (lambda: purify("--purification.steps=0"), ["at least 1 step"]),
    "purify: no steps of ADP": (lambda: purify("--purification.method=adp", "--purification.steps=0"), ["steps ≥ 1"]),
    "purify: negative noise": (lambda: purify("--purification.method=adp", "--purification.sigma=-1"), ["sigma ≥ 0"]),
    "purify: no rounds": (lambda: purify("--purification.rounds=0"), ["rounds must be at least 1"]),
    "purify: no batch": (lambda: purify("--batch=0"), ["batch must be at least 1"]),
    "purify: method none": (lambda: purify("--purification.method=none"), ["choose diffpure or adp"]),
    "purify: unknown solver": (
        lambda: purify("--purification.solver=sdf"),
        ["purification.solver", "'sde'", "sdf", "--help"],
    ),
    "purify: unknown method": (
        lambda: purify("--purification.method=magic"),
        ["purification.method", "'diffpure'", "magic"],
    ),
    "purify: unknown option": (lambda: purify("--speed=9"), ["unrecognized arguments: --speed", "--help"]),
    "purify: unknown weights": (lambda: purify("--purification.denoiser=digits-unte"), ["Did you mean 'digits-unet'?"]),
    "purify: a classifier": (
        lambda: purify("--purification.denoiser=digits-cnn"),
        ["is a classifier", "denoiser is needed"],
    ),
    "weights: a pickle": (
        lambda: after(purify("--purification.denoiser=evil.pt"), evil("evil.pt")),
        ["evil.pt is a pickle", "convert", ".safetensors"],
    ),
    "weights: a pickle under another name": (
        lambda: after(purify("--purification.denoiser=evil.safetensors"), evil("evil.safetensors", card=True)),
        ["evil.safetensors does not hold the network"],
    ),
    "weights: missing": (lambda: purify("--purification.denoiser=none.safetensors"), ["Cannot read none.safetensors"]),
    "weights: truncated": (
        lambda: weights_file(cut_to=0.5),
        ["own.safetensors does not hold the network", "train it again"],
    ),
    "weights: changed": (
        lambda: weights_file(cut_to=0.9, honest=False),
        ["own.safetensors is damaged or was changed", "sha256"],
    ),
    "card: missing": (
        lambda: after(weights_file(), Path("own.json").unlink()),
        ["Cannot read own.json", "no such file"],
    ),
    "card: cut": (lambda: after(weights_file(), cut("own.json")), ["own.json is no card", "mend it"]),
    "card: no text": (lambda: after(weights_file(), text("own.json", b"\xff\xfe\xff")), ["own.json is no card"]),
    "card: another object": (lambda: after(weights_file(), text("own.json", "[1]")), ["own.json is no card"]),
    "card: unknown architecture": (
        lambda: weights_file(lambda facts: facts | {"architecture": {"type": "EDN"}}),
        ["Unknown architecture 'EDN'", "Did you mean 'EDM'?"],
    ),
    "card: an architecture that is no description": (
        lambda: weights_file(lambda facts: facts | {"architecture": "EDM"}),
        ["own.json is no card", "architecture must be an object"],
    ),
    "card: an unknown argument": (
        lambda: weights_file(lambda facts: facts | {"architecture": facts["architecture"] | {"depth": 3}}),
        ["EDM", "does not fit this version", "depth"],
    ),
    "card: another network": (
        lambda: weights_file(lambda facts: facts | {"architecture": {"type": "SmallCNN"}}),
        ["does not hold the network that its card describes"],
    ),
    "evaluate: unknown stage": (lambda: evaluate("--stages=[clean,exakt]"), ["stages", "'exact'", "exakt"]),
    "evaluate: unknown vote": (
        lambda: evaluate("--classification.vote=all"),
        ["classification.vote", "'majority'", "all"],
    ),
    "evaluate: a single vote of three": (
        lambda: evaluate("--classification.draws=3"),
        ["Single", "choose MeanSoftmax"],
    ),
    "evaluate: a stage twice": (lambda: evaluate("--stages=[clean,clean]"), ["names of their own"]),
    "evaluate: no stage": (lambda: evaluate("--stages=[]"), ["at least one stage"]),
    "evaluate: negative eps": (lambda: evaluate("--threat.eps=-0.1"), ["eps", "[0, 1]", "-0.1"]),
    "evaluate: eps of 8 grey levels": (lambda: evaluate("--threat.eps=8"), ["eps", "eps=8/255"]),
    "evaluate: eps NaN": (lambda: evaluate("--threat.eps=nan"), ["threat.eps", "nan"]),
    "evaluate: no search steps": (lambda: evaluate("--search.steps=0"), ["steps ≥ 1"]),
    "evaluate: no EOT": (lambda: evaluate("--search.eot=0"), ["EOT", "at least 1 draw"]),
    "evaluate: no draws": (lambda: evaluate("--draws=0"), ["at least 1 judging draw"]),
    "evaluate: no images": (lambda: evaluate("--images=0"), ["images must be at least 1"]),
    "evaluate: no batch": (lambda: evaluate("--resources.batch=0"), ["batch", "at least 1"]),
    "evaluate: no micro-batch": (lambda: evaluate("--micro_batch=0"), ["micro_batch must be at least 1"]),
    "evaluate: negative memory": (lambda: evaluate("--resources.budget=-1"), ["budget at least 0"]),
    "evaluate: no threads": (lambda: evaluate("--resources.threads=0"), ["threads", "at least 1"]),
    "evaluate: another run's folder": (
        foreign_run,
        ["run holds another run", "choose another folder", "key.seed: 0 → 5"],
    ),
    "evaluate: a file for a folder": (
        lambda: after(evaluate(), text("run", "x")),
        ["Cannot write run/ledger.sqlite", "check the path"],
    ),
    "evaluate: a ledger that is none": (
        lambda: after(evaluate(), text("run/ledger.sqlite", "no database " * 99)),
        ["run/ledger.sqlite is no ledger", "move it away"],
    ),
    "demo: no images": (lambda: ["demo", "--out=run", "--images=0"], ["images must be at least 1"]),
    "demo: fewer images than none": (lambda: ["demo", "--out=run", "--images=-5"], ["images must be at least 1"]),
    "data: unknown": (lambda: evaluate("--data=cifar"), ["Unknown data 'cifar'", "'digits'", ".npz"]),
    "data: missing": (lambda: evaluate("--data=none.npz"), ["Cannot read none.npz", "check the path"]),
    "data: no labels": (
        lambda: after(evaluate("--data=data.npz"), np.savez("data.npz", x=images())),
        ["x", "y (labels)"],
    ),
    "data: too few labels": (lambda: with_data(y=np.zeros(3, int)), ["y must be 4 whole numbers"]),
    "data: labels that are no integers": (lambda: with_data(y=np.ones(4)), ["y must be 4 whole numbers", "float64"]),
    "data: negative labels": (lambda: with_data(y=np.array([0, 1, -1, 2])), ["y must count classes from 0", "-1"]),
    "data: labels beyond the classifier": (lambda: with_data(y=np.array([0, 1, 10, 2])), ["labels 0 to 9", "10"]),
    "data: no image": (lambda: with_data(x=images()[:0], y=np.zeros(0, int)), ["data.npz holds no images"]),
    "data: two images of one id": (
        lambda: with_data(ids=np.array([1, 2, 2, 3])),
        ["ids must be 4 different whole numbers"],
    ),
    "data: ids that are no integers": (
        lambda: with_data(ids=np.array([0.1, 0.2, 0.3, 0.4])),
        ["different whole numbers"],
    ),
    "data: larger images": (
        lambda: with_data(x=np.zeros((4, 1, 16, 16))),
        ["digits-cnn takes images of shape [1, 8, 8]"],
    ),
    "config: missing": (lambda: evaluate("--config=none.yaml"), ["config", "does not exist"]),
    "config: unknown key": (
        lambda: after(evaluate("--config=c.yaml"), text("c.yaml", "images: 3\ncolour: blue\n")),
        ["does not accept", "'colour'"],
    ),
    "config: no YAML": (
        lambda: after(evaluate("--config=c.yaml"), text("c.yaml", "images: [3\nseed: 1\n")),
        ["parsing config", "line 2"],
    ),
    "attack: another format": (lambda: ["attack", "out.npy", "--images=2"], [".npz", "name the output so", "out.npz"]),
    "merge: no shards": (lambda: ["merge", "out", "[]"], ["Name the folders of the shards"]),
    "merge: no such shard": (lambda: ["merge", "out", "[part]"], ["There is no run at part", "Check the path"]),
    "verify: no run": (lambda: ["verify", "run"], ["no options in run", "lustral evaluate"]),
    "verify: other options": (
        lambda: after(["verify", "run"], text("run/run.json", "{}")),
        ["run.json", "another version of Lustral or damaged"],
    ),
    "compare: no run": (lambda: ["compare", "a", "b"], ["no options in a", "lustral evaluate"]),
    "export: no run": (lambda: ["export", "run", "out.json"], ["no results in run", "lustral evaluate"]),
    "export: unknown kind": (lambda: ["export", "run", "out.csv"], [".parquet or .json", ".csv"]),
    "controls: no images": (lambda: ["controls", "--images=0"], ["images must be at least 1, not 0"]),
    "suite: unknown": (lambda: evaluate("--suite=standart"), ["Unknown suite 'standart'", "Did you mean 'standard'"]),
    "stage: purifier of another kind": (
        lambda: ["attack", "a.npz", "--stage=joint score", "--images=1", "--purification.steps=1"],
        ["score field of ADP", "joint full"],
    ),
    "stage: no purifier": (
        lambda: ["attack", "a.npz", "--stage=surrogate", "--images=1", "--purification.method=none"],
        ["attacks a purifier, and there is none"],
    ),
    "report: no run": (lambda: ["report", "run"], ["no results in run", "lustral evaluate"]),
    "report: an unfinished run": (
        lambda: after(["report", "run"], text("run/ledger.sqlite", "")),
        ["no results in run"],
    ),
    "report: damaged results": (
        lambda: after(["report", "run"], a_run(), cut("run/results.json")),
        ["results.json is damaged", "run the evaluation again"],
    ),
    "report: results of something else": (
        lambda: after(["report", "run"], a_run(a=1)),
        ["holds no results of Lustral"],
    ),
    "show: results of something else": (lambda: after(["show", "run"], a_run(a=1)), ["holds no results of Lustral"]),
    "show: unknown": (lambda: ["show", "digits-nn"], ["Unknown weights 'digits-nn'", "Did you mean 'digits-cnn'?"]),
    "train: unknown task": (lambda: ["train", "classifer", "a.safetensors"], ["task", "'classifier'", "classifer"]),
    "train: another format": (lambda: ["train", "classifier", "a.pt"], [".safetensors files", "a.safetensors"]),
    "train: no steps": (lambda: [*TRAIN, "--recipe.steps=0"], ["steps ≥ 1"]),
    "train: no width": (lambda: [*TRAIN, "--width=0"], ["width must be an even number"]),
    "train: an odd width": (lambda: ["train", "denoiser", *TRAIN[2:], "--width=3"], ["width must be an even number"]),
    "train: another run's checkpoint": (
        foreign_checkpoint,
        ["net.checkpoint belongs to another training run", "delete it"],
    ),
    "train: a damaged checkpoint": (
        lambda: after(foreign_checkpoint(), cut("net.checkpoint")),
        ["net.checkpoint is damaged", "delete it"],
    ),
    "train: a checkpoint of something else": (
        lambda: after(TRAIN, torch.save(torch.ones(3), "net.checkpoint")),
        ["net.checkpoint is no training checkpoint", "delete it"],
    ),
    "train: a malicious checkpoint": (
        lambda: after(TRAIN, torch.save(Evil(), "net.checkpoint")),
        ["net.checkpoint is damaged or no training checkpoint"],
    ),
    "no command": (lambda: [], ["subcommand", "--help"]),
    "unknown command": (lambda: ["purifi"], ["invalid choice: 'purifi'", "'purify'"]),
}


def said(capfd) -> str:
    """The one line on stderr."""
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("lustral: ")
    return lines[0]


@pytest.mark.parametrize(("prepare", "words"), CASES.values(), ids=CASES.keys())
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(prepare, words, lustral, tmp_path, tree, capfd):
    args = prepare()
    before = tree(tmp_path)
    capfd.readouterr()
    assert lustral(*args) == 2
    sentence = said(capfd)
    for word in words:
        assert word in sentence
    assert tree(tmp_path) == before
    assert not Path(MARKER).exists()


def test_the_malicious_pickle_would_work(tmp_path, monkeypatch):
    """Or the absence of its marker above would say nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Evil()))
    assert Path(MARKER).exists()


# What is prepared, giving the arguments; and how many bytes a file may have.
FULL: dict[str, tuple[Callable[[], list[str]], int]] = {
    "npy": (lambda: purify(), 600),
    "npz": (lambda: after(["purify", "data.npz", "out.npz", "--purification.steps=1"], save()), 600),
    "png": (lambda: after(PNG, picture()), 100),
    "jpeg": (lambda: after(["purify", "in.jpg", "out.jpg", "--purification.steps=1"], picture("in.jpg")), 100),
    "attack": (lambda: ["attack", "out.npz", "--images=2", "--stage=clean", "--purification.steps=1"], 600),
    "weights": (lambda: TRAIN, 600),
    "card": (lambda: [*TRAIN[:2], "tiny.safetensors", "--width=2", "--recipe.steps=1", "--recipe.batch=2"], 600),
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
    monkeypatch.setattr(tasks, "SAVE_EVERY", 0.0)
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


SEARCH, SPENT = Search(steps=1), Resources()
BARE = build.system("bare", Purification(method="none"), Classification())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build.vote(replace(Classification(), vote="majorty", draws=3)), "Did you mean 'majority'"),
        (lambda: build.purifier(Purification(method="difpure"), None), "Did you mean 'diffpure'"),
        (lambda: build.purifier(Purification(solver="sdf"), library.denoiser("digits-unet")), "Unknown solver 'sdf'"),
        (lambda: build.threat(ThreatModel(norm="linfty")), "Did you mean 'linf'"),
        (lambda: build.stage("exat", BARE, Linf(0.1), SEARCH, SPENT, 2), "Did you mean 'exact'"),
        (lambda: build.stage("exact", BARE, Linf(0.1), replace(SEARCH, loss="drl"), SPENT, 2), "Did you mean 'dlr'"),
        (lambda: data.load("digits", "tests"), "Did you mean 'test'"),
        (lambda: tasks.run("classify", Path("a.safetensors"), "digits", 4, Recipe()), "Unknown task"),
        (lambda: weights.build({"type": "Unet"}), "Did you mean 'UNet'"),
        (lambda: library.classifier("digits-unet"), "is a denoiser, but a classifier is needed"),
        (lambda: commands.purify(Path("in.npy"), Path("out.npy"), Purification(), 0, 0), "batch must be at least 1"),
    ],
    ids=range(11),
)
def test_the_library_says_the_same(call, words):
    with pytest.raises(UserError, match=words):
        call()
