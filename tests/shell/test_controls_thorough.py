"""``lustral controls --thorough``: every cheat, and honest systems of every kind, each with its verdict."""

import pytest
from benchmarks import controls as measuring

from lustral.shell import controls
from lustral.shell.cheating import CHEATS, MORE_CHEATS
from lustral.shell.control import Control
from lustral.shell.controls import CONTROLS, THOROUGH, Caught
from lustral.shell.honest import HONEST, MORE_HONEST
from lustral.shell.options import Resources

CHEAP = ("mixture of experts", "TorchScript", "float() inside", "softmax", "bfloat16 inside", "median")
CHEAP += ("garbage after 60 calls", "ripples of 0.02 at 300", "steep thermometer", "steps and a leak everywhere")
CHEAP += ("labels alone", "probabilities without a rest", "another face for gradients")
KINDS = ("DiffPure", "ADP", "GDMP", "ADBM", "ADDT", "SSNI", "AGDM", "votes", "softmax", "bfloat16", "experts", "blur")


def test_the_thorough_ones_are_all_of_them_and_the_usual_ones_are_as_few_as_before():
    assert set(THOROUGH) == {*HONEST, *CHEATS, *MORE_CHEATS, *MORE_HONEST}
    assert set(CONTROLS) == {*HONEST, *CHEATS}
    assert len(CONTROLS) == 16
    assert all(any(kind in name for name in MORE_HONEST) for kind in KINDS)
    assert not any(control.unseen for control in {**HONEST, **MORE_HONEST}.values())


@pytest.fixture(scope="module")
def caught() -> dict[str, Caught]:
    chosen = {name: THOROUGH[name] for name in CHEAP}
    return {one.name: one for one in controls.main("smoke", 8, Resources(threads=1), chosen)}


@pytest.mark.parametrize("name", CHEAP)
def test_every_one_is_as_it_must_be(name, caught):
    assert caught[name].holds, caught[name]
    assert (caught[name].red == ()) == (not THOROUGH[name].expected or "smoke" in THOROUGH[name].unseen)


@pytest.mark.parametrize(
    ("control", "suite", "red", "holds", "said"),
    [
        (Control(None), "smoke", (), True, "sound (no red finding)"),
        (Control(None), "smoke", ("logits",), False, "**false alarm** (`logits`)"),
        (Control(None, ("logits",)), "smoke", ("logits", "transfer"), True, "caught (`logits`, `transfer`)"),
        (Control(None, ("logits",)), "smoke", ("transfer",), False, "**missed** (`transfer`)"),
        (Control(None, ("logits",), unseen=("smoke",)), "smoke", (), True, "**not seen**: here a page without red"),
        (Control(None, ("logits",), unseen=("smoke",)), "smoke", ("logits",), False, "**otherwise than expected**"),
        (Control(None, ("logits",), unseen=("smoke",)), "quick", (), False, "**missed** (no red finding)"),
    ],
)
def test_what_a_suite_must_see_is_data_and_a_stale_expectation_is_wrong(control, suite, red, holds, said):
    assert control.holds(suite, red) == holds
    one = Caught("it", control.expected, red, 0.5, holds, suite in control.unseen)
    assert measuring.cell(one).startswith(said)
    assert measuring.cell(one).endswith("; worst 50.0%")


def test_a_part_that_is_measured_anew_leaves_the_other_columns():
    one, other = Caught("a", (), (), 0.1, True), Caught("b", ("logits",), (), 0.2, False)
    first = measuring.with_column(None, "quick", [one])
    both = measuring.with_column(first, "smoke", [one, other])
    assert both.head == ["control", "smoke, 8 images", "quick, 24 images"]
    assert both.rows[0] == ["a", "sound (no red finding); worst 10.0%", "sound (no red finding); worst 10.0%"]
    assert both.rows[1] == ["b", "**missed** (no red finding); worst 20.0%", "not measured"]


@pytest.mark.parametrize(("options", "chosen"), [([], CONTROLS), (["--thorough"], THOROUGH)])
def test_the_command_puts_those_through_that_are_asked_for(options, chosen, lustral, monkeypatch, capsys):
    given = []
    made = [Caught("s", (), (), 0.0, True), Caught("late", ("logits",), (), 0.0, True, unseen=True)]
    monkeypatch.setattr(controls, "main", lambda *args: given.append(args[3]) or made)
    assert lustral("controls", *options) == 0
    assert given == [chosen]
    said = capsys.readouterr().out
    assert "as it must be: s: no red finding" in said
    assert "as it must be: late: not seen by this suite, where a page without red is no evidence" in said
