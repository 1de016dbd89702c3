"""The controls that ship are caught, each by a finding that is about it, and nothing else is."""

import pytest

from lustral.shell import controls
from lustral.shell.controls import Caught
from lustral.shell.options import Resources


@pytest.fixture(scope="module")
def caught() -> dict[str, Caught]:
    return {control.name: control for control in controls.main(24, Resources(threads=1))}


def test_a_sound_evaluation_has_no_red_finding(caught):
    assert caught["sound"].red == ()


def test_masked_gradients_are_caught_by_every_comparison_that_they_must_lose(caught):
    assert {"gradient-exists", "bpda-over-exact", "transfer", "black-box"} <= set(caught["shattered gradients"].red)
    assert {"bpda-over-exact", "transfer", "black-box", "binarisation"} <= set(caught["rippled gradients"].red)
    assert "gradient-exists" not in caught["rippled gradients"].red


def test_broken_attacks_are_caught(caught):
    assert "unbounded" in caught["reversed attack"].red
    assert caught["overstepping attack"].red == ("threat-kept",)


def test_the_command_says_so_and_fails_where_a_control_passes(lustral, monkeypatch, capsys):
    monkeypatch.setattr(controls, "main", lambda *_: [Caught("sound", (), ()), Caught("broken", ("unbounded",), ())])
    assert lustral("controls") == 2
    assert "WRONG: broken: no red finding" in capsys.readouterr().out
