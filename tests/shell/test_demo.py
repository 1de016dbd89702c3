"""The demonstration from end to end, with one look per attack."""

import json

import pytest

from digits import EPS
from lustral.shell import demo, runner
from lustral.shell.options import Resources, Search


@pytest.fixture
def found(lustral, monkeypatch, tmp_path) -> dict:
    monkeypatch.setattr(demo, "Search", lambda **options: Search(steps=1, eot=1))
    assert lustral("demo", "--out=out", "--images=2", "--resources.batch=2") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "ledger.sqlite",
        "results.json",
        "pictures.npz",
        "report.html",
    }
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_the_demo_compares_four_systems_and_draws_two_curves(found):
    main = [(row["system"], row["stage"]) for row in found["rows"] if row["group"] == "main"]
    stages = ("clean", "null", "blind", "bpda", "exact", "fixed")
    defended = [(system, stage) for system in ("adp", "diffpure-sde", "diffpure-ddpm") for stage in stages]
    assert main == [("undefended", stage) for stage in ("clean", "null", "exact")] + defended
    eps = {row["x"] for row in found["rows"] if row["group"] == "eps"}
    assert sorted(eps) == pytest.approx([EPS / 3, EPS * 2 / 3, EPS * 4 / 3])
    t_star = [(row["stage"], row["x"]) for row in found["rows"] if row["group"] == "t_star"]
    assert sorted(t_star) == [(stage, t) for stage in ("clean", "exact") for t in (0.05, 0.1, 0.15)]
    assert {row["system"] for row in found["rows"]} == {"undefended", "adp", "diffpure-sde", "diffpure-ddpm"}
    assert found["data"]["images"] == 2
    others = ["adp", "diffpure-sde", "diffpure-ddpm"]
    assert [(test["a"], test["b"]) for test in found["paired"]] == [("undefended", name) for name in others]


def test_the_demo_is_planned_for_minutes_and_its_networks_see_whole_looks():
    jobs, _ = demo.plan(64, Resources())
    assert sum(runner.work(job) * job.images for job in jobs) < 2.1e6  # network rows
    for job in jobs:
        attack, votes = job.stage.attack, job.system.defence.vote.draws
        if job.system.defence.purifier is not None and job.stage.name in ("bpda", "exact", "fixed"):
            rows = attack.gradient.eot * votes * job.images
            assert rows % job.system.defence.classifier.size == 0
            assert attack.select is None or attack.select.draws * votes <= attack.gradient.eot * votes
