"""Progress within a picture and within a batch."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from lustral.denoisers.base import Meter
from lustral.shell import cli, commands, runner, terminal
from lustral.shell.gauge import gauged


def test_rows_forward_count_once_and_backward_twice_and_all_is_what_was_planned():
    meter, told = Meter(), []
    network = meter.watch(lambda x: 2 * x)
    x = torch.zeros(3, 1, requires_grad=True)
    with gauged(meter, 0.5, 100.0, told.append):
        network(x).sum().backward()
        assert told == [1.5, 3.0]
        for _ in range(100):
            network(x)
        assert sum(told) == 100
    assert sum(told) == 100
    with gauged(meter, 1.0, 7.0, told.append):
        pass
    assert told[-1] == 7.0
    network(x)
    assert sum(told) == 107


def test_what_fails_is_not_told_as_done():
    told = []
    with pytest.raises(KeyError), gauged(None, 1.0, 7.0, told.append):
        raise KeyError
    assert told == []


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """The shares in lines of progress, which come with every step, and their estimates."""
    for module in (commands, runner):
        monkeypatch.setattr(module, "progress", lambda: terminal.Log(soon=0.0, every=0.0))

    def lines() -> list[tuple[int, str]]:
        found = re.findall(r"^ *(\d+)% .*, (\d+ s left|time left unknown)$", capsys.readouterr().err, re.MULTILINE)
        return [(int(share), left) for share, left in found]

    return lines


def test_a_single_picture_has_progress(said, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / "a.png")
    words = ["--purification.method=diffpure", "--purification.denoiser=digits-unet", "--purification.steps=10"]
    assert cli.main(["purify", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--seed=0", *words]) == 0
    shares = [share for share, _ in said()]
    assert shares == sorted(shares)
    assert {10, 20, 30, 40, 50, 60, 70, 80, 90, 100} <= set(shares)


def test_a_single_batch_has_an_estimate_before_its_end(said, tmp_path):
    words = ["--data=digits", "--images=2", "--stages=clean,exact", "--search.steps=5", "--search.eot=1"]
    words += ["--purification.method=adp", "--purification.denoiser=digits-unet"]
    assert not cli.main(
        ["evaluate", str(tmp_path / "run"), "--classification.classifier=digits-cnn", *words, "--allow-red"]
    )
    found = said()
    assert len([share for share, left in found if 0 < share < 100 and left != "time left unknown"]) > 5
