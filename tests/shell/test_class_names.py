"""Classes of a set and labels of a classifier are matched by name, or refused; they are never shifted in silence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lustral as library
from digits import digits
from lustral.core.errors import UserError
from lustral.shell import labels, weights
from lustral.shell.images import data
from lustral.shell.images.classes import CLASSES
from lustral.shell.images.splits import Labelled, Parts

CIFAR = weights.card(weights.find("cifar10-resnet"))
BARE = ["--purification.method=none", "--classification.classifier=digits-cnn", "--threat.eps=0.1", "--images=16"]
SHORT = [*BARE, "--stages=[clean]", "--draws=1"]


def named(*names: str) -> Parts:
    """A set with one image of each class."""
    y = torch.arange(len(names))
    part = Labelled(y, lambda: torch.zeros(len(names), 1, 2, 2), y)
    return Parts({"train": part, "test": part}, classes=names)


def nameless(count: int) -> weights.Card:
    return replace(CIFAR, classes=[], architecture=CIFAR.architecture | {"classes": count})


def agreed(parts: Parts, *cards: weights.Card) -> list[int]:
    return labels.agree(parts, "mine", cards).own["test"].y.tolist()


def test_a_folder_of_cats_and_dogs_has_the_classifiers_labels(capfd):
    found = labels.agree(named("cat", "dog"), "mine", [CIFAR])
    assert found.own["test"].y.tolist() == found.own["train"].y.tolist() == [3, 5]
    assert found.classes == tuple(CIFAR.classes)
    assert "Labels of mine as cifar10-resnet numbers them: cat is 3, dog is 5." in capfd.readouterr().err


@pytest.mark.parametrize(
    ("own", "known", "expected"),
    [
        (("Truck", "AIRPLANE", "Dog"), CIFAR.classes, [9, 0, 5]),
        (("ankle-boot", "t_shirt top"), ["T-shirt/top", "trouser", "Ankle boot"], [2, 0]),
        (("00", "01", "10"), [str(i) for i in range(11)], [0, 1, 10]),
        (("a_b", "ab"), ["ab", "a_b"], [1, 0]),
        (("学", "ß"), ["SS", "学"], [1, 0]),
    ],
)
def test_names_count_in_any_case_and_without_punctuation_where_that_leaves_them_apart(own, known, expected):
    assert agreed(named(*own), replace(CIFAR, classes=list(known))) == expected


def test_sets_in_the_classifiers_order_and_sets_without_names_keep_their_labels(capfd):
    assert agreed(named(*CIFAR.classes), CIFAR) == list(range(10))
    assert agreed(replace(named(*"ab"), classes=()), CIFAR) == [0, 1]
    assert agreed(named(*"ab"), nameless(2)) == [0, 1]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("own", "cards", "words"),
    [
        (
            ("cat", "kitten"),
            [CIFAR],
            "cifar10-resnet has no class kitten, which mine has; its classes are airplane, auto",
        ),
        (tuple("0123456789"), [CIFAR], "cifar10-resnet has no class 0, 1, 2"),
        (("cat", "dog"), [nameless(10)], r"tells 10 classes apart and does not name them, but mine has 2 \(cat, dog\)"),
        (("0", "1", "2", "10"), [nameless(4)], "nobody knows whether 2 or 10 comes first"),
        (("cat", "dog"), [CIFAR, replace(CIFAR, name="b", classes=["dog", "cat"])], "cifar10-resnet and b number the"),
    ],
)
def test_what_cannot_be_right_is_refused(own, cards, words):
    with pytest.raises(UserError, match=words):
        agreed(named(*own), *cards)


def test_a_class_without_images_need_not_be_known():
    empty = replace(named("cat", "dog", "kitten"), own={"test": Labelled(torch.tensor([0, 1]), torch.Tensor)})
    assert agreed(empty, CIFAR) == [3, 5]


def test_the_shipped_sets_fit_the_shipped_classifiers():
    for name in ("digits-cnn", "digits-trades"):
        assert agreed(data.parts("digits"), weights.card(weights.find(name)))[:3] == digits(3).y.tolist()
    for name in ("cifar10-resnet", "cifar10-trades", "cifar10-whitened"):
        assert agreed(named(*CLASSES["cifar10"]), weights.card(weights.find(name))) == list(range(10))


def threes_and_sevens(name: str = "set") -> None:
    """Class folders of two digits alone."""
    some = digits(100)
    for label in (3, 7):
        folder = Path(name) / str(label)
        folder.mkdir(parents=True)
        for row in (some.y == label).nonzero().flatten()[:8].tolist():
            Image.fromarray((255 * some.x[row, 0]).byte().numpy()).save(folder / f"{row}.png")


def test_evaluate_and_attack_meet_the_right_labels(lustral):
    threes_and_sevens()
    assert lustral("evaluate", "run", "--data=set", *SHORT) == 0
    found = json.loads(Path("run/results.json").read_text())
    assert found["rows"][0]["accuracy"] > 0.9
    assert found["data"]["classes"] == []
    assert lustral("attack", "out.npz", "--data=set", "--stage=clean", *BARE) == 0
    assert sorted(set(np.load("out.npz")["y"].tolist())) == [3, 7]


def test_arrays_may_name_their_classes(lustral, capfd):
    some = digits(4)
    y, names = np.array([1, 0, 1, 0]), np.array(["seven", "three"])
    np.savez("a.npz", x=some.x.numpy(), y=y, classes=names)
    assert data.parts("a.npz").classes == ("seven", "three")
    assert lustral("evaluate", "run", "--data=a.npz", *SHORT) == 2
    assert "digits-cnn has no class seven, three, which a.npz has" in capfd.readouterr().err
    np.savez("a.npz", x=some.x.numpy(), y=y, classes=names[:1])
    with pytest.raises(UserError, match="names 1 classes, but holds the label 1"):
        data.parts("a.npz")


TRAIN = ["train", "classifier", "net.safetensors", "--recipe.steps=1", "--recipe.batch=4", "--network.width=4"]


def test_what_is_trained_knows_its_classes(lustral):
    threes_and_sevens()
    (Path("set") / "9").mkdir()
    assert lustral(*TRAIN, "--data=set") == 0
    about = weights.card(Path("net.safetensors"))
    assert about.classes == ["3", "7", "9"]
    assert about.architecture["classes"] == 3


def test_a_training_that_starts_from_a_classifier_keeps_its_labels(lustral):
    threes_and_sevens()
    assert lustral(*TRAIN[:5], "--data=set", "--network.start=digits-cnn", "--recipe.lr=1e-9") == 0
    about = weights.card(Path("net.safetensors"))
    assert about.classes == [str(i) for i in range(10)]
    assert about.measured["test_accuracy"] > 0.9


def test_more_images_for_a_training_have_the_sets_labels(lustral, capfd, monkeypatch):
    from lustral.shell.trainer import fit

    threes_and_sevens()
    threes_and_sevens("more")
    Path("more/3").rename("more/8")
    Path("set/8").mkdir()
    seen, source = [], fit._source
    monkeypatch.setattr(fit, "_source", lambda *given: seen.append(source(*given)) or seen[0])
    assert lustral(*TRAIN, "--data=set", "--extra=more", "--recipe.extra_share=0.5") == 0
    assert sorted(set(seen[0].extra.y.tolist())) == [1, 2]
    Path("more/8").rename("more/5")
    assert lustral(*TRAIN, "--data=set", "--extra=more", "--recipe.extra_share=0.5") == 2
    assert "set has no class 5, which more has; its classes are 3, 7, 8" in capfd.readouterr().err


def test_names_count_in_python_too():
    defence, few = library.defend(library.classifier("digits-cnn")), library.data("digits")[:6]
    turned = few._replace(y=9 - few.y, classes=tuple("9876543210"))
    for given in (few, turned):
        found = library.assess(defence, given, library.Linf(0.1), "smoke", allow_red=True)
        assert {row["accuracy"] for row in found["rows"] if row["stage"] == "clean"} == {1.0}
    with pytest.raises(library.UserError, match="digits-cnn has no class"):
        library.assess(defence, few._replace(classes=tuple("abcdefghij")), library.Linf(0.1), "smoke")
