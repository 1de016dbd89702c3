"""Tuning: the grid, the front, the configuration that it leaves, and who has seen the validation images."""

import json
from pathlib import Path

import pytest
import yaml

from lustral.core.errors import UserError
from lustral.shell import tune
from lustral.shell.images import data
from lustral.shell.options import Classification, Grid, Purification


def setting(name, clean, robust, calls):
    return tune.Setting(name, (clean, 0.0, 1.0), (robust, 0.0, 1.0), calls)


def test_the_grid_is_every_combination_on_top_of_the_rest():
    made = tune.grid(Purification(solver="ddim"), Grid(t_star=[0.05, 0.1], steps=[2, 4]))
    assert list(made) == [f"t_star={t}, steps={n}" for t in ("0.05", "0.1") for n in (2, 4)]
    assert made["t_star=0.1, steps=2"] == Purification(solver="ddim", t_star=0.1, steps=2)
    with pytest.raises(UserError, match="what to tune over"):
        tune.grid(Purification(), Grid())
    with pytest.raises(UserError, match="Method diffpure has no sigma to choose"):
        tune.grid(Purification(), Grid(sigma=[Purification().sigma]))


def test_the_front_is_what_nothing_beats():
    settings = [
        setting("good", 0.9, 0.5, 10),
        setting("worse in all", 0.8, 0.4, 20),
        setting("cheaper", 0.8, 0.4, 5),
        setting("cleaner", 0.95, 0.4, 20),
        setting("as good", 0.9, 0.5, 10),
        setting("as good but dearer", 0.9, 0.5, 11),
    ]
    found = {s.name for s in tune.with_front(settings) if s.best}
    assert found == {"good", "cheaper", "cleaner", "as good"}


def test_tuning_leaves_a_plot_and_a_configuration_that_runs(lustral, capsys):
    options = ["--images=3", "--over.t_star=[0.05,0.1]", "--over.steps=[2]", "--purification.solver=ddim"]
    options += ["--search.steps=1", "--search.eot=1", "--draws=2", "--precision=bfloat16"]
    assert lustral("tune", "run", *options) == 0
    said = capsys.readouterr().out
    assert said.count("t_star=") >= 2
    assert "amber: digits-cnn, digits-unet: trained on the validation images too" in said
    assert Path("run/tune.png").stat().st_size > 1000
    ids = json.loads(Path("run/results.json").read_text())["data"]
    assert ids["split"] == "validation"
    chosen = yaml.safe_load(Path("run/best.yaml").read_text())
    assert chosen["purification"]["solver"] == "ddim"
    assert chosen["purification"]["t_star"] in (0.05, 0.1)
    assert chosen["precision"] == "bfloat16" == json.loads(Path("run/run.json").read_text())["precision"]
    small = ["--images=2", "--stages=[clean]", "--draws=1"]
    assert lustral("evaluate", "test", "--config=run/best.yaml", *small) == 0
    assert json.loads(Path("test/results.json").read_text())["data"]["split"] == "test"


def test_a_network_that_left_the_validation_images_out_has_not_seen_them(lustral):
    train = ["--network.width=2", "--recipe.steps=1", "--recipe.batch=4"]
    assert lustral("train", "classifier", "fit.safetensors", "--split=fit", *train) == 0
    assert lustral("train", "classifier", "all.safetensors", *train) == 0
    none, fit, whole = Purification("none"), Classification("fit.safetensors"), Classification("all.safetensors")
    assert tune.seen_before(none, fit, "digits") == []
    assert tune.seen_before(none, whole, "digits") == ["all"]
    assert tune.seen_before(none, whole, "mnist") == []
    assert tune.seen_before(Purification(), fit, "digits") == ["digits-unet"]
    assert not set(data.load("digits", "fit").ids.tolist()) & set(data.load("digits", "validation").ids.tolist())
