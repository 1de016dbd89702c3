"""Attacks by the names of stages."""

import json
from pathlib import Path

import numpy as np
import pytest

from lustral.shell.ledger import Ledger


def evaluate(lustral, stages: str, *options: str) -> dict:
    assert lustral("evaluate", "run", "--images=6", f"--stages={stages}", "--draws=6", *options) == 0
    return json.loads(Path("run/results.json").read_text())


def test_an_attack_on_the_classifier_alone_goes_on_where_that_is_fooled(lustral):
    evaluate(
        lustral, "[blind]", "--purification.steps=2", "--search.steps=12", "--search.restarts=2", "--threat.eps=0.5"
    )
    with Ledger(Path("run/ledger.sqlite")) as ledger:
        found = ledger.outcomes("diffpure", "blind")
    assert [len(seen) for seen in found.wrongs] == [24] * 6
    assert all((seen == 1).sum() > 3 for seen in found.wrongs), "the classifier is fooled early"
    assert not any(np.isnan(seen).any() for seen in found.wrongs)


def test_the_joint_attack_follows_the_field_of_published_adp_too(lustral):
    adp = ["--purification.method=adp", "--purification.steps=2", "--purification.published=true"]
    found = evaluate(lustral, "[joint score]", *adp, "--search.steps=2", "--search.eot=2")
    assert [row["stage"] for row in found["rows"]] == ["joint score"]


@pytest.mark.parametrize("restarts", [0, -3])
def test_fewer_restarts_than_one_are_refused(restarts, lustral, capfd):
    options = [f"--search.restarts={restarts}", "--images=2", "--purification.steps=2"]
    assert lustral("evaluate", "run", "--stages=[bpda]", *options) == 2
    assert f"Restarts needs at least 1 restart, not {restarts}." in capfd.readouterr().err


def test_without_the_exact_attack_robustness_is_counted_of_the_last_one(lustral):
    found = evaluate(
        lustral, '[clean, "null", blind]', "--purification.steps=2", "--search.steps=8", "--threat.eps=0.4"
    )
    detail, rows = found["details"]["diffpure"], {row["stage"]: row for row in found["rows"]}
    (single,) = (r["accuracy"] for r in detail["risks"] if (r["rule"], r["m"]) == ("single", 1))
    assert detail["stage"] == "blind"
    assert single == rows["blind"]["single_draw"]
    assert single[0] < rows["clean"]["accuracy"]
    page = Path("run/report.html").read_text()
    assert "Every threat statement" in page


@pytest.mark.parametrize(
    ("stages", "method", "untried"),
    [("[bpda]", "diffpure", True), ("[bpda,exact]", "diffpure", False), ("[clean]", "diffpure", False)]
    + [("[bpda]", "none", False)],  # with no purifier, BPDA is the exact gradient
)
def test_numbers_of_a_purifier_without_its_exact_gradient_come_with_a_warning(stages, method, untried, lustral, capsys):
    steps = ["--purification.steps=2"] if method == "diffpure" else []
    found = evaluate(lustral, stages, f"--purification.method={method}", *steps, "--search.steps=1")
    caveat = "No attack here follows the exact gradient through diffpure; one that does may leave less."
    assert found["caveats"] == ([caveat] if untried else [])
    for shown in (" ".join(capsys.readouterr().out.split()), Path("run/report.html").read_text()):
        assert (caveat in shown) == untried


def test_without_any_attack_nothing_is_said_of_robustness(lustral):
    found = evaluate(lustral, '[clean, "null"]', "--purification.steps=2", "--search.steps=2")
    detail = found["details"]["diffpure"]
    assert (detail["risks"], detail["published"]) == ([], [])
    page = Path("run/report.html").read_text()
    assert "Every threat statement" not in page
    assert "As others would count it" not in page
