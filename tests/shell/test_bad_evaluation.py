"""Wrong input of every kind ends in exit code 2 and one sentence that says what to do: data, evaluations, runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lustral as library
from digits import digits, system
from lustral.core.errors import UserError
from lustral.core.threat import Linf
from lustral.shell import build, commands, weights
from lustral.shell.images import data
from lustral.shell.options import (
    Adversary,
    Classification,
    Network,
    Noise,
    Purification,
    Resources,
    Search,
    ThreatModel,
)
from lustral.shell.trainer import tasks
from mistakes import Cases, a_run, after, check, cut, evaluate, foreign_run, images, text, with_data

CASES: Cases = {
    "evaluate: unknown stage": (lambda: evaluate("--stages=[clean,exakt]"), ["stages", "'exact'", "exakt"]),
    "evaluate: unknown vote": (
        lambda: evaluate("--classification.vote=all"),
        ["classification.vote", "majority", "'all'"],
    ),
    "evaluate: a single vote of three": (
        lambda: evaluate("--classification.draws=3"),
        ["Single", "choose MeanSoftmax"],
    ),
    "evaluate: a stage twice": (lambda: evaluate("--stages=[clean,clean]"), ["names of their own"]),
    "evaluate: no stage": (lambda: evaluate("--stages=[]"), ["at least one stage"]),
    "evaluate: negative eps": (lambda: evaluate("--threat.eps=-0.1"), ["eps", "[0, 1]", "-0.1"]),
    "evaluate: eps of 8 grey levels": (lambda: evaluate("--threat.eps=8"), ["eps", "8/255 is 0.031373"]),
    "evaluate: eps NaN": (lambda: evaluate("--threat.eps=nan"), ["eps", "nan"]),
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
    "attack: a file in the way": (
        lambda: after(["attack", "way/out.npz", "--images=2"], text("way", "")),
        ["Cannot write way/out.npz", "a folder and a file are mixed up"],
    ),
    "attack: another format": (lambda: ["attack", "out.npy", "--images=2"], [".npz", "name the output so", "out.npz"]),
    "merge: no shards": (lambda: ["merge", "out", "[]"], ["Name the folders of the shards"]),
    "merge: no such shard": (lambda: ["merge", "out", "[part]"], ["There is no run at part", "Check the path"]),
    "verify: no run": (lambda: ["verify", "run"], ["There is no run at run;", "Check the path"]),
    "verify: other options": (
        lambda: after(["verify", "run"], text("run/run.json", "{}"), text("run/ledger.sqlite", "")),
        ["run.json", "another version of Lustral or damaged"],
    ),
    "compare: no run": (lambda: ["compare", "a", "b"], ["There is no run at a;", "Check the path"]),
    "export: no run": (lambda: ["export", "run", "out.json"], ["There is no run at run;", "Check the path"]),
    "export: unknown kind": (
        lambda: after(["export", "run", "out.csv"], text("run/ledger.sqlite", "")),
        [".parquet or .json", ".csv"],
    ),
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
    "report: no run": (lambda: ["report", "run"], ["There is no run at run;", "Check the path"]),
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
    "no command": (lambda: [], ["subcommand", "--help"]),
    "unknown command": (lambda: ["purifi"], ["Unknown command 'purifi'", "Did you mean 'purify'"]),
}


@pytest.mark.parametrize(("prepare", "words"), CASES.values(), ids=CASES.keys())
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(prepare, words, lustral, tmp_path, tree, capfd):
    check(prepare(), words, lustral, tmp_path, tree, capfd)


DIGITS = digits(4)
ASKED = tasks.Asked("classifier", Network(), Noise(), Adversary())
SEARCH, SPENT = Search(steps=1), Resources()
BARE = system("bare", Purification(method="none"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build.vote(replace(Classification(), vote="majorty", draws=3)), "Did you mean 'majority'"),
        (lambda: build.purifier(Purification(method="difpure"), build.Networks(None)), "Did you mean 'diffpure'"),
        (
            lambda: build.purifier(Purification(solver="sdf"), build.Networks(library.denoiser("digits-unet"))),
            "Unknown solver 'sdf'",
        ),
        (lambda: build.threat(ThreatModel(norm="linfty")), "Did you mean 'linf'"),
        (lambda: build.stage("exat", BARE, Linf(0.1), SEARCH, SPENT, 2), "Did you mean 'exact'"),
        (lambda: build.stage("exact", BARE, Linf(0.1), replace(SEARCH, loss="drl"), SPENT, 2), "Did you mean 'dlr'"),
        (lambda: data.load("digits", "tests"), "Did you mean 'test'"),
        (lambda: tasks.make(replace(ASKED, task="classify"), DIGITS), "Unknown task"),
        (lambda: weights.build({"type": "Unet"}), "Did you mean 'UNet'"),
        (lambda: library.classifier("digits-unet"), "is a denoiser, but a classifier is needed"),
        (lambda: commands.purify(Path("in.npy"), Path("out.npy"), Purification(), 0, 0), "batch must be at least 1"),
    ],
    ids=range(11),
)
def test_the_library_says_the_same(call, words):
    with pytest.raises(UserError, match=words):
        call()
