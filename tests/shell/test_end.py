"""Ctrl-C and SIGTERM: a training keeps the step that ran, says which, and goes on from it."""

import signal

import pytest

from lustral.shell import weights
from lustral.shell.ending import awaited
from lustral.shell.ledger import Ledger
from lustral.shell.trainer import fit

TRAIN = ["train", "classifier", "net.safetensors", "--network.width=4", "--recipe.steps=9", "--recipe.batch=8"]


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_asked_to_end_keeps_its_step(asked, lustral, monkeypatch, tmp_path, capfd):
    train = fit.train

    def interrupted(*args):
        for now in train(*args):
            if now.step == 5:
                signal.raise_signal(asked)
            yield now

    with monkeypatch.context() as patch:
        patch.setattr(fit, "train", interrupted)
        assert lustral(*TRAIN) == 130
    said = capfd.readouterr().err
    assert "interrupted; step 5 of 9 is kept, and the same command goes on from there." in said
    assert weights.load_checkpoint(tmp_path / "net.checkpoint")["step"] == 5
    assert lustral(*TRAIN) == 0
    said = capfd.readouterr()
    assert "Going on at step 5." in said.err
    assert len(said.out.splitlines()) == 2, "a line and a path"
    assert lustral(*TRAIN[:2], "whole.safetensors", *TRAIN[3:]) == 0
    assert (tmp_path / "net.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_second_request_ends_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with awaited() as end:
        for asked in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):  # of one moment: one request
            signal.raise_signal(asked)
        assert end.asked
        end.since -= 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_evaluation_that_is_asked_to_end_says_what_is_kept(lustral, monkeypatch, capfd):
    asked = ["evaluate", "run", "--data=digits", "--images=4", "--stages=clean,null", "--resources.batch=2"]
    asked += ["--classification.classifier=digits-cnn"]
    write = Ledger.write

    def interrupted(*args):
        write(*args)
        raise KeyboardInterrupt  # as Ctrl-C does where nothing awaits it

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "write", interrupted)
        assert lustral(*asked) == 130
    said = capfd.readouterr().err
    assert "interrupted; 2 images of stages are kept, and the same command goes on from there." in said
    assert lustral(*asked) == 0
