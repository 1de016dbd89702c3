"""A run's plots as files."""

import pytest

from lustral.shell import folder
from reports import pictures, results


@pytest.fixture
def run(tmp_path):
    folder.publish(tmp_path / "run", results(), pictures())
    return tmp_path / "run"


STARTS = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}


@pytest.mark.parametrize(("kind", "what"), [("pdf", "eps"), ("png", "trajectory"), ("svg", "stages")])
def test_a_plot_is_a_file_of_the_format_that_its_name_says(lustral, run, tmp_path, kind, what):
    out = tmp_path / "figures" / f"plot.{kind}"
    assert lustral("plot", str(run), str(out), f"--what={what}") == 0
    first = out.read_bytes()
    assert first.startswith(STARTS[kind])
    if kind == "svg":
        assert all(name in first.decode() for name in ("DiffPure SDE", "ADP", "#0072b2", ">accuracy<"))
        assert "var(--" not in first.decode()
    assert lustral("plot", str(run), str(out), f"--what={what}") == 0
    assert out.read_bytes() == first, "the same run gives the same file"
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_other_formats_and_plots_are_refused_in_a_sentence(lustral, run, tmp_path, capsys):
    assert lustral("plot", str(run), str(tmp_path / "plot.bmp")) == 2
    assert "A plot is written as .pdf, .png, .svg; name the output so, for example plot.pdf." in capsys.readouterr().err
    assert lustral("plot", str(run), str(tmp_path / "plot.pdf"), "--what=cost") == 2
    assert "Unknown plot of this run 'cost'. Known: " in capsys.readouterr().err
    assert not list(tmp_path.glob("plot.*"))
