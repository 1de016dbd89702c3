"""The controls that ship are caught, each by a finding that is about it, and nothing else is."""

import pytest

from lustral.shell import controls
from lustral.shell.controls import Caught
from lustral.shell.options import Resources


@pytest.fixture(scope="module")
def caught() -> dict[str, Caught]:
    return {control.name: control for control in controls.main("smoke", 8, Resources(threads=1))}


@pytest.mark.parametrize("name", controls.CONTROLS)
def test_every_control_is_as_it_must_be(name, caught):
    assert caught[name].holds, caught[name]


def test_masked_gradients_are_caught_by_every_comparison_that_they_must_lose(caught):
    assert {"gradient-exists", "bpda-over-exact", "transfer"} <= set(caught["shattered gradients"].red)
    assert {"bpda-over-exact", "transfer"} <= set(caught["rippled gradients"].red)
    assert "gradient-exists" not in caught["rippled gradients"].red


def test_broken_attacks_are_caught(caught):
    assert "unbounded" in caught["reversed attack"].red
    assert caught["overstepping attack"].red == ("threat-kept",)


def test_the_command_says_so_and_fails_where_a_control_passes(lustral, monkeypatch, capsys):
    made = [Caught("sound", (), (), 0.0, True), Caught("broken", ("unbounded",), (), 0.9, False)]
    monkeypatch.setattr(controls, "main", lambda *_: made)
    assert lustral("controls") == 2
    assert "WRONG: broken: no red finding" in capsys.readouterr().out
