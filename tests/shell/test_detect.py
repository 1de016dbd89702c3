"""`lustral detect` on a run's candidates."""

import json
from pathlib import Path

import numpy as np
import pytest

from lustral.shell.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("detect") / "run"
    options = ["--images=24", "--draws=1", "--purification.method=none", "--search.steps=10", "--threat.eps=0.25"]
    assert main(["evaluate", str(place), *options, "--stages=[clean,exact]"]) == 0
    return place


@pytest.mark.parametrize("statistic", ["field", "eps", "single"])
def test_attacked_digits_are_told_from_clean_ones(run, statistic, lustral, capfd):
    """An attack of eps = 1/4 is far from any digit; the clean stage has nothing to tell."""
    assert lustral("detect", str(run), f"--statistic={statistic}") == 0
    found = json.loads((run / "detection.json").read_text(encoding="utf-8"))
    (stage,) = found["stages"]
    assert (stage["system"], stage["stage"], stage["images"]) == ("undefended", "exact", 24)
    value, low, high = stage["found"]["auroc"]
    assert low <= value <= high
    assert value > 0.9
    assert (run / "detection.png").stat().st_size > 5000
    assert "AUROC" in capfd.readouterr().out


def test_what_is_no_run_or_no_denoiser_is_refused(run, lustral, capfd):
    assert lustral("detect", "nowhere") == 2
    assert lustral("detect", str(run), "--denoiser=digits-cnn") == 2
    assert "digits-cnn is a classifier, but a denoiser is needed" in capfd.readouterr().err
    assert not Path("detection.json").exists()
    assert lustral("detect", str(run), "--sigma=0") == 2
    assert "knows noise of sigma 0.01 to 1, not 0; choose --sigma" in capfd.readouterr().err


def test_a_denoiser_for_other_images_is_refused(run, lustral, capfd):
    x = np.random.default_rng(0).uniform(size=(8, 3, 8, 8)).astype(np.float32)
    np.savez("images.npz", x=x, y=np.arange(8) % 2)
    options = ["--data=images.npz", "--network.width=4", "--recipe.steps=1", "--recipe.batch=4"]
    assert lustral("train", "denoiser", "colour.safetensors", *options) == 0
    assert lustral("detect", str(run), "--denoiser=colour.safetensors") == 2
    assert "takes images of shape [3, 8, 8], the run's are [1, 8, 8]" in capfd.readouterr().err


def test_a_runs_own_denoiser_and_noise_level_are_used(lustral, capfd):
    few = ["--images=2", "--draws=1", "--stages=clean,bpda", "--search.steps=1", "--purification.steps=1"]
    of = ["--purification.method=adp", "--purification.denoiser=digits-addt", "--purification.sigma=0.125"]
    assert lustral("evaluate", "run", *few, *of) == 0
    assert lustral("detect", "run") == 0
    found = json.loads(Path("run/detection.json").read_text())
    assert (found["denoiser"], found["sigma"]) == ("digits-addt", 0.125)
    Path("two.yaml").write_text("systems: {a: {}, b: {purification: {denoiser: digits-addt, steps: 1}}}\n")
    assert lustral("evaluate", "two", "--config=two.yaml", *few, "--stages=clean") == 0
    assert lustral("detect", "two") == 2
    assert "choose one with --denoiser: digits-unet, digits-addt" in capfd.readouterr().err
