"""Commands on finished runs of whatever made them."""

import pytest

import lustral as library
from digits import digits, system
from lustral.evaluate import certificate
from lustral.shell import comparison
from lustral.shell.options import Purification


@pytest.fixture(autouse=True)
def _short_certificates(monkeypatch):
    monkeypatch.setattr(certificate, "DRAWS", (2,))
    monkeypatch.setattr(certificate, "DIRECTIONS", 4)


def test_runs_of_assess_are_compared_among_themselves_and_with_those_of_evaluate(tmp_path, lustral, capsys):
    """From the folders alone: the same defence, seed and images give the same decisions, whoever ran them."""
    defence = system("undefended", Purification(method="none"), micro_batch=8).defence
    found = library.assess({"undefended": defence}, digits(4), library.Linf(0.1), "smoke", out="assessed")
    few = ["--suite=smoke", "--images=4", "--purification.method=none", "--micro-batch=8", "--threat.eps=0.1"]
    assert lustral("evaluate", "evaluated", *few) == 0
    capsys.readouterr()
    assert lustral("compare", "assessed", "evaluated") == 0
    assert " under worst: no clear difference." in capsys.readouterr().out
    lines = {line["stage"]: line for line in comparison.runs(tmp_path / "assessed", tmp_path / "evaluated")}
    assert {"clean", "worst", "exact"} <= lines.keys()
    worst = next(row for row in found["rows"] if row["stage"] == "worst")
    for line in lines.values():
        assert (line["images"], line["difference"], line["unlike"]) == (4, [0, 0, 0], [])
    assert lines["worst"]["accuracy_a"] == worst["accuracy"]
