"""A defence of one's own through a suite, in one call."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import lustral
from digits import digits
from lustral.core.noise import Key
from lustral.evaluate import certificate, metrics
from lustral.evaluate.protocol import Data, shuffled
from lustral.shell.ledger import Ledger


@pytest.fixture(autouse=True)
def _short_certificates(monkeypatch):
    monkeypatch.setattr(certificate, "DRAWS", (2,))
    monkeypatch.setattr(certificate, "DIRECTIONS", 4)


def blur(x: torch.Tensor, rng: lustral.Rng) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(x + 0.1 * rng.normal(x), 3, stride=1, padding=1)


def test_purifiers_of_ones_own_are_evaluated_and_compared_in_one_call(tmp_path):
    net = lustral.classifier("digits-cnn")
    defences = {"bare": lustral.defend(net), "blurred": lustral.defend(net, blur)}
    found = lustral.assess(defences, digits(6), lustral.Linf(0.1), "smoke", out=tmp_path / "run")
    rows = {(row["system"], row["stage"]): row for row in found["rows"] if row["group"] != "eps"}
    assert rows["bare", "worst"]["draws"] == 1
    assert rows["blurred", "worst"]["draws"] == 20
    assert rows["blurred", "clean"]["accuracy"] > rows["blurred", "worst"]["accuracy"]
    assert len(found["paired"]) == 1
    assert rows["bare", "clean"]["forward"] == 6
    assert rows["bare", "exact"]["backward"] > 0
    assert not net._forward_hooks
    assert json.loads(Path(tmp_path, "run", "results.json").read_text())["ledger_digest"] == found["ledger_digest"]
    assert found["suite"] == "lustral-smoke-1"


def test_labels_shifted_by_one_and_a_network_that_knows_nothing_are_withheld():
    few = digits(6)
    blank = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 100))
    shifted = few._replace(y=(few.y + 1) % 10)
    named = {"shifted": lustral.defend(lustral.classifier("digits-cnn")), "untrained": lustral.defend(blank)}
    found = lustral.assess(named, shifted, lustral.Linf(0.1), "smoke")
    assert all("above-chance" in found["withheld"][name] for name in named)


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = lustral.assess(lustral.defend(lustral.classifier("digits-cnn")), digits(3), lustral.L2(0.5), "smoke")
    assert {row["system"] for row in found["rows"]} == {"defence"}
    assert not list(tmp_path.iterdir())


def test_an_unknown_suite_is_refused():
    with pytest.raises(lustral.UserError, match="Did you mean 'quick'"):
        lustral.assess(lustral.defend(lustral.classifier("digits-cnn")), digits(2), lustral.Linf(0.1), "quik")


def test_the_anytime_interval_goes_through_images_in_an_order_of_its_own(tmp_path):
    few = digits(8)
    turned = few._replace(ids=torch.arange(8).flip(0))
    defence = lustral.defend(lustral.classifier("digits-cnn"), blur)
    found = lustral.assess(defence, turned, lustral.Linf(0.1), "smoke", out=tmp_path)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        worst = ledger.outcomes("defence", "worst")
    shares = metrics.right(worst.logits, worst.y).double().mean(dim=1)
    assert worst.ids.tolist() == list(range(8))
    order = shuffled(turned, Key(0))
    assert sorted(order) == list(range(8))
    assert order != list(range(8))
    assert not torch.equal(shares, shares[order]), "or the order would not matter"
    assert found["details"]["defence"]["sequence"] == list(metrics.sequence(shares[order].tolist()))


class Pair(torch.nn.Module):
    """A network with more than one output, as an autoencoder's."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.9))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict]:
        return self.scale * x, {"logvar": x}


@dataclass(frozen=True)
class Through:
    net: Pair
    n_steps = 1

    def init(self, x, rng):
        return x

    def step(self, i, state, rng):
        return self.net(state)[0]

    def readout(self, state):
        return state


def test_networks_of_any_output_and_logits_in_bfloat16_are_evaluated():
    net = lustral.classifier("digits-cnn")
    defence = lustral.defend(lambda x: net(x).bfloat16(), Through(Pair()))
    found = lustral.assess(defence, digits(2), lustral.Linf(0.1), "smoke")
    clean = next(row for row in found["rows"] if row["stage"] == "clean")
    assert clean["forward"] == 2 * clean["draws"]


def given(**changes) -> Data:
    return digits(3)._replace(**changes)


X = digits(3).x
MISTAKES = {
    "a plain network": (lambda net: net, given(), "defence must be made by lustral.defend"),
    "8-bit range": (lustral.defend, given(x=X * 255), "must lie in [0, 1]"),
    "numpy": (lustral.defend, given(x=X.numpy()), "must be a torch tensor"),
    "no images": (lustral.defend, digits(3)[:0], "at least one image"),
    "ids twice": (lustral.defend, given(ids=torch.zeros(3).long()), "an id of its own"),
    "labels int32": (lustral.defend, given(y=digits(3).y.int()), "an int64 label for each of the 3 images"),
    "labels too many": (lustral.defend, given(y=digits(4).y), "an int64 label for each of the 3 images"),
    "labels beyond": (
        lustral.defend,
        given(y=digits(3).y + 10),
        "Labels are 0 to 9 where there are 10 classes, but one is 17",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_a_sentence(name):
    make, data, said = MISTAKES[name]
    with pytest.raises(lustral.UserError, match=re.escape(said)):
        lustral.assess(make(lustral.classifier("digits-cnn")), data, lustral.Linf(0.1), "smoke")
