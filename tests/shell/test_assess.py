"""A defence of one's own through a suite, in one call."""

import json
from pathlib import Path

import pytest
import torch

import lustral
from digits import digits
from lustral.evaluate import certificate


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


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = lustral.assess(lustral.defend(lustral.classifier("digits-cnn")), digits(3), lustral.L2(0.5), "smoke")
    assert {row["system"] for row in found["rows"]} == {"defence"}
    assert not list(tmp_path.iterdir())


def test_an_unknown_suite_is_refused():
    with pytest.raises(lustral.UserError, match="Did you mean 'quick'"):
        lustral.assess(lustral.defend(lustral.classifier("digits-cnn")), digits(2), lustral.Linf(0.1), "quik")
