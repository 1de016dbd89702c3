"""Images that a network was trained on are a red finding, and reports say whether images are known to be unseen."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lustral
from digits import digits
from lustral.core.threat import Linf
from lustral.denoisers.ideal import FiniteSet
from lustral.evaluate.findings import Evidence, findings
from lustral.evaluate.origin import Origin
from lustral.shell import cards, origins, weights
from lustral.shell.cli import main
from lustral.shell.images import data
from lustral.shell.options import Resources

TRAIN = ["--recipe.steps=1", "--network.width=4", "--recipe.batch=4", "--threads=1", "--device=cpu"]
EVALUATE = ["--stages=[clean,exact]", "--search.steps=1", "--search.eot=1", "--draws=1", "--threat.eps=0.1"]
OWN = ["--classification.classifier=own.safetensors", "--purification.method=none", "--resources.threads=1"]
UNSEEN, SEEN, UNKNOWN = "known to be unseen", "seen in training", "not known"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = digits(40).x.numpy(), np.arange(40) % 10
    np.savez("whole.npz", x=x[:20], y=y[:20])
    np.savez("apart.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    eight = (255 * np.concatenate([x[10:20], x[20:30]])).round().astype(np.uint8)
    np.savez("half.npz", x=eight, y=np.concatenate([y[10:20], y[20:30]]))


def train(*args: str, out: str = "own.safetensors") -> None:
    assert main(["train", "classifier", out, *TRAIN, *args]) == 0


def evaluate(*args: str, out: str = "run") -> dict:
    assert main(["evaluate", out, *OWN, *EVALUATE, *args]) == 0
    return json.loads(Path(out, "results.json").read_text(encoding="utf-8"))


def finding(found: dict, system: str = "undefended") -> dict | None:
    return next((said for said in found["findings"][system] if said["name"] == "seen-in-training"), None)


def test_the_file_that_was_trained_on_is_a_red_finding():
    train("--data=whole.npz")
    found = evaluate("--data=whole.npz", "--images=20")
    assert finding(found)["level"] == "red"
    assert finding(found)["text"] == "Of 20 images 20 are among those that own (20) was trained on."
    assert found["test_images"] == {"undefended": SEEN}
    assert "seen-in-training" in found["withheld"]["undefended"]
    assert not [row for row in found["rows"] if row["stage"] == "exact"]
    assert [row for row in evaluate("--data=whole.npz", "--allow_red")["rows"] if row["stage"] == "exact"]
    assert f"Undefended: {SEEN}" in Path("run/report.html").read_text(encoding="utf-8")


def test_another_split_is_known_to_be_unseen():
    train("--data=apart.npz")
    found = evaluate("--data=apart.npz", "--images=20")
    assert (finding(found)["level"], found["test_images"]) == ("green", {"undefended": UNSEEN})
    said = "none of the 20 images is one, to the pixel, that own was trained on. Near copies are not told."
    assert finding(found)["text"] == f"{UNSEEN.capitalize()}: {said}"
    assert f"Undefended: {UNSEEN}" in Path("run/report.html").read_text(encoding="utf-8")


def test_the_same_pixels_are_known_in_another_file_and_under_a_corruption():
    train("--data=apart.npz")
    text = "Of 20 images 10 are among those that own (10) was trained on."
    assert finding(evaluate("--data=half.npz", "--images=20"))["text"] == text
    assert finding(evaluate("--data=half.npz", "--corruption=contrast-5", out="dim"))["text"] == text


def test_extra_images_and_the_network_that_was_started_from_count():
    train("--data=apart.npz")
    train("--data=digits", "--network.start=own.safetensors", out="more.safetensors")
    train("--data=digits", "--extra=whole.npz", "--recipe.extra_share=0.5", out="extra.safetensors")
    for name in ("more", "extra"):
        assert len(origins.trained(Path(f"{name}.safetensors")).marks) == 1200 + 20
    about = cards.card(Path("own.safetensors"))
    cards.describe(Path("own.safetensors"), replace(about, training={}))
    train("--data=digits", "--network.start=own.safetensors", out="again.safetensors")
    assert not origins.trained(Path("again.safetensors")).whole
    found = evaluate("--data=digits", "--images=4", "--classification.classifier=again.safetensors")
    assert finding(found)["level"] == "red", "marks in the file count, whatever a card leaves out"


def test_a_card_without_training_images_or_with_other_ones_knows_nothing():
    train("--data=apart.npz")
    about = cards.card(Path("own.safetensors"))
    assert about.training["images"] == 20
    for wrong in ({}, about.training | {"sha256": "0"}, {"data": ["x"], "split": {}, "sha256": 1, "whole": 2}):
        cards.describe(Path("own.safetensors"), replace(about, training=wrong))
        assert not origins.trained(Path("own.safetensors")).whole
    Path("own.json").write_text(Path("own.json").read_text().replace('"training": {', '"training": "x", "y": {'))
    assert main(["evaluate", "run", *OWN, "--data=apart.npz"]) == 2


def test_what_ships_for_the_digits_has_not_seen_their_test_images():
    for name in ("digits-cnn", "digits-unet", "digits-trades", "digits-adbm", "digits-addt"):
        found = origins.trained(cards.find(name))
        assert (len(found.marks), found.whole) == (1200, True)
    for split, state in (("test", UNSEEN), ("validation", SEEN), ("train", SEEN)):
        assert str(origins.of(shipped(), data.load("digits", split).x)) == state


def shipped() -> lustral.Defence:
    return lustral.defend(lustral.classifier("digits-cnn"), lustral.diffpure(lustral.denoiser("digits-unet"), 0.1))


def test_a_defence_that_learned_elsewhere_is_not_known():
    x, net, denoiser = digits(4).x, lustral.classifier("digits-cnn"), lustral.denoiser("digits-unet")
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    elsewhere = [
        lustral.defend(own),
        lustral.defend(lambda x: net(x)),
        lustral.defend(torch.nn.Sequential(net, torch.nn.Linear(10, 10)).eval()),
        lustral.defend(own, lustral.diffpure(denoiser, 0.1)),
        lustral.defend(net, lustral.adp(FiniteSet(x))),
        lustral.defend(net, lustral.from_function(lambda x, rng: x)),
    ]
    assert [str(origins.of(defence, x)) for defence in elsewhere] == [UNKNOWN] * len(elsewhere)
    assert str(origins.of(lustral.defend(net), x)) == UNSEEN
    with torch.no_grad():
        next(net.parameters()).add_(0.1)
    assert str(origins.of(lustral.defend(net), x)) == UNKNOWN


def test_assess_knows_the_cards_of_what_was_loaded():
    for split, state in (("test", UNSEEN), ("train", SEEN)):
        some = data.load("digits", split)[:4]
        bare = lustral.defend(lustral.classifier("digits-cnn"))
        found = lustral.assess(bare, (some.x, some.y), Linf(0.1), "smoke", resources=Resources(threads=1))
        assert found["test_images"] == {"defence": state}
        assert ("seen-in-training" in found["withheld"].get("defence", ())) == (state == SEEN)


def test_few_images_that_were_seen_are_amber_and_marks_are_small():
    evidence = Evidence(eps=0.1, classes=10, random=False, bare=True, origin=Origin(1000, {"net": 9}, 9, True))
    assert [f.level for f in findings(evidence) if f.name == "seen-in-training"] == ["amber"]
    made = origins.Trained(np.unique(origins.marks(torch.rand(60_000, 1, 2, 2))), True)
    assert sum(map(len, origins.written(made).values())) < 1e6


def test_marks_are_the_same_of_bytes_and_floats_and_of_no_tensor_that_is_kept():
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    assert np.array_equal(origins.marks(pixels), origins.marks(pixels.float() / 255))
    train("--data=apart.npz")
    net, _ = weights.load("own.safetensors", "classifier")
    assert weights.as_loaded(net)
