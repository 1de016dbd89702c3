"""What is usual for a data set: never the digits' for another one."""

import json
from pathlib import Path

import numpy as np
import pytest

from lustral.shell import plan, standard, weights
from lustral.shell.options import Adversary, Classification, Entry, Evaluation, Purification, Resources, Search
from lustral.shell.options import ThreatModel as Threat
from mistakes import EVALUATE, OWN, TRAIN, after, images, save
from published import put, python_files

RADII = {
    ("digits", "linf"): 3 / 16,
    ("mnist", "linf"): 0.3,
    ("fashion-mnist", "linf"): 0.1,
    ("cifar10", "linf"): 8 / 255,
    ("cifar10", "l2"): 0.5,
    ("cifar10", "l1"): 12.0,
    ("cifar100", "linf"): 8 / 255,
}


@pytest.mark.parametrize(("data", "norm"), RADII)
def test_an_attack_is_as_long_as_is_usual_for_the_data_and_the_norm(data, norm):
    assert standard.threat(Threat(norm), data).eps == RADII[data, norm]
    assert standard.threat(Threat(norm, 0.05), data).eps == 0.05
    if norm == "linf":
        assert standard.adversary(Adversary(), data).eps == RADII[data, norm]


def asked(data: str, **changes) -> Evaluation:
    parts = {"purification": Purification(), "classification": Classification(), "threat": Threat(), "systems": None}
    return Evaluation(
        data=data, images=1, suite=None, stages=["clean"], search=Search(), draws=1, seed=0, micro_batch=8,
        **parts | changes,
    )  # fmt: skip


def test_a_plan_for_cifar_is_made_of_its_own_networks(tmp_path, monkeypatch):
    put(tmp_path / "cifar-10-batches-py", python_files())
    monkeypatch.setenv("LUSTRAL_DATA", str(tmp_path))
    systems = {"agdm": Entry(Purification(method="agdm", steps=1)), "bare": Entry(Purification("none"))}
    made = plan.make(asked("cifar10", systems=systems), Resources())
    assert made.threat.eps == made.options.threat.eps == 8 / 255
    assert made.options.classification == Classification("cifar10-whitened")
    assert made.options.purification == Purification(denoiser="cifar10-unet")
    assert made.options.systems["agdm"].purification.guide == "cifar10-trades"
    assert made.data.x.shape == (1, 3, 32, 32)


def test_what_is_usual_is_there_and_is_made_for_such_images():
    shapes = {"digits": [1, 8, 8], "cifar10": [3, 32, 32]}
    for data, usual in standard.USUAL.items():
        for name in filter(None, (usual.classifier, usual.denoiser, usual.guide)):
            assert weights.card(weights.find(name)).image == shapes[data]


WITHOUT = {
    "no classifier": (EVALUATE, 0, "--classification.classifier"),
    "no denoiser": (EVALUATE, 1, "--purification.denoiser"),
    "no eps": (EVALUATE, 2, "CIFAR 8/255, ImageNet 4/255"),
    "no eps in l2": ([*EVALUATE, "--threat.norm=l2"], 2, "No eps is usual for data.npz in l2; say --threat.eps"),
    "no classifier to attack": (["attack", "a.npz"], 0, "--classification.classifier"),
    "no radius": (["train", "trades", *TRAIN[2:]], None, "--adversary.eps"),
    "no guide": (["train", "addt", *TRAIN[2:]], None, "--adversary.guide"),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_nothing_is_usual_for_images_of_ones_own(case, lustral, capfd):
    command, left_out, said = WITHOUT[case]
    named = [] if left_out is None else [option for row, option in enumerate(OWN) if row != left_out]
    assert lustral(*after([*command, "--data=data.npz", *named], save())) == 2
    assert said in capfd.readouterr().err


def test_digits_in_l2_need_an_eps(lustral, capfd):
    assert lustral(*EVALUATE, "--threat.norm=l2") == 2
    assert "No eps is usual for digits in l2; say --threat.eps" in capfd.readouterr().err


def test_a_run_of_an_earlier_version_is_read(lustral):
    """Its options name a guide, whatever the method, and all that was a default then."""
    assert lustral(*EVALUATE) == 0
    place = Path("run/run.json")
    told = json.loads(place.read_text())
    assert (told["threat"]["eps"], told["classification"]["classifier"]) == (3 / 16, "digits-cnn")
    assert (told["purification"]["denoiser"], told["purification"]["guide"]) == ("digits-unet", None)
    place.write_text(json.dumps(told | {"purification": told["purification"] | {"guide": "digits-trades"}}))
    assert plan.load(Path("run"), Resources()).options.purification.denoiser == "digits-unet"


def test_a_colour_picture_is_cleaned_by_a_network_for_colours(lustral):
    np.save("in.npy", images()[:1].repeat(3, axis=1).repeat(4, axis=2).repeat(4, axis=3) * [[[[0.2]], [[0.5]], [[1]]]])
    few = ["--purification.steps=1", "--seed=3"]
    assert lustral("purify", "in.npy", "out.npy", *few) == 0
    assert lustral("purify", "in.npy", "named.npy", *few, "--purification.denoiser=cifar10-unet") == 0
    assert np.array_equal(np.load("out.npy"), np.load("named.npy"))
