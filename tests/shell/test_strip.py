"""Film strips: they show the purification that is written, say what it does, and what a classifier says of it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from digits import digits
from lustral.core.kernel import trace
from lustral.core.noise import Key, Rng
from lustral.core.purifier import Purifier
from lustral.shell import strip, systems, weights
from lustral.shell.options import Purification

Grid = list[list[Axes]]
IMAGES, SHOWN = 4, 2
NUMBER = r"([\d.e-]+)"
DIFFPURE = {"solver": "ddpm", "steps": 2}
HOW = {
    "diffpure": DIFFPURE,
    "fixed": {**DIFFPURE, "fixed_noise": True},
    "ssni": {**DIFFPURE, "ssni": "logistic"},
    "gdmp": {"method": "gdmp", "rounds": 2, "steps": 1},
    "adp": {"method": "adp", "steps": 2},
}


@pytest.fixture
def filmed(lustral, monkeypatch) -> Callable[..., Grid]:
    """Purifies four digits with seed 3 and gives the axes of the strip that was drawn, a row for each image."""
    figures = []

    def drawn(**options) -> Figure:
        figures.append(Figure(**options))
        return figures[-1]

    monkeypatch.setattr(strip, "Figure", drawn)
    np.save("in.npy", digits(IMAGES).x.numpy())

    def run(options: dict, *more: str) -> Grid:
        chosen = [f"--purification.{name}={value}" for name, value in options.items()]
        assert lustral("purify", "in.npy", "out.npy", "--seed=3", "--show.strip=s.png", *chosen, *more) == 0
        (figure,) = figures
        rows, columns, *_ = figure.axes[0].get_subplotspec().get_geometry()
        grid = [[None] * columns for _ in range(rows)]
        for axes in figure.axes:
            place = axes.get_subplotspec()
            grid[place.rowspan.start][place.colspan.start] = axes
        return grid

    return run


def purifier(options: dict) -> Purifier:
    return systems.purifier(Purification(**options), systems.Networks(*weights.load("digits-unet", "denoiser")))


def source() -> Rng:
    return Key(3).rng(SHOWN)


def shown(axes: Axes) -> np.ndarray:
    """The picture in a place of the strip."""
    (picture,) = axes.get_images()
    return np.asarray(picture.get_array())


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_a_strip_goes_from_the_input_through_the_steps_to_the_image_that_is_written(filmed, how):
    grid = filmed(how, f"--show.images={SHOWN}")
    before, after = np.load("in.npy"), np.load("out.npy")
    frames = [frame.clamp(0, 1).numpy() for frame in trace(purifier(how), digits(SHOWN).x, source())]
    assert len(grid) == SHOWN
    for i, row in enumerate(grid):
        assert [axes.get_title() for axes in row] == ["input", *map(str, range(len(frames)))]
        assert np.array_equal(shown(row[0]), before[i, 0])
        assert np.allclose(shown(row[-1]), after[i, 0], rtol=0, atol=1e-5)
        for axes, frame in zip(row[1:], frames, strict=True):
            assert np.allclose(shown(axes), frame[i, 0], rtol=0, atol=1e-5)
    with Image.open("s.png") as picture:
        width, height = picture.size
        inches = grid[0][0].figure.get_size_inches()
        assert picture.format == "PNG"
        assert width / height == pytest.approx(inches[0] / inches[1], rel=0.01)
        assert min(width / len(grid[0]), height / len(grid)) > 50


@pytest.mark.parametrize("how", [HOW["diffpure"], HOW["fixed"], HOW["gdmp"]], ids=["diffpure", "fixed", "gdmp"])
def test_a_constant_time_is_named_in_every_frame(filmed, how):
    wanted = {"gdmp": 0.036}.get(how.get("method"), 0.1)
    for row in filmed(how, f"--show.images={SHOWN}"):
        assert row[0].get_xlabel() == ""
        for axes in row[1:]:
            assert axes.get_xlabel() == f"t* {wanted}"


def test_ssni_names_each_images_own_score_norm_and_time(filmed):
    made = purifier(HOW["ssni"])
    norms = made.measure(digits(SHOWN).x, source().fold("init", "measure"))
    times = made.stages[0].t_star(norms).tolist()
    assert times[0] != pytest.approx(times[1], rel=0.01)
    for row, norm, time in zip(filmed(HOW["ssni"], f"--show.images={SHOWN}"), norms.tolist(), times, strict=True):
        for axes in row[1:]:
            said = re.fullmatch(rf"\|s\| {NUMBER} t\* {NUMBER}", axes.get_xlabel())
            assert float(said[1]) == pytest.approx(norm, abs=0.51)
            assert float(said[2]) == pytest.approx(time, rel=0.01)


def test_adp_names_each_images_step_size_and_whether_it_moves(filmed):
    made, x = purifier(HOW["adp"]), digits(SHOWN).x
    state = made.init(x, source().fold("init"))
    wanted = [state]
    with torch.no_grad():
        for i in range(made.n_steps):
            wanted.append(made.step(i, wanted[-1], source().fold("step", i)))
    for k, row in enumerate(filmed(HOW["adp"], f"--show.images={SHOWN}")):
        for axes, state in zip(row[1:], wanted, strict=True):
            said = re.fullmatch(rf"α {NUMBER}( still)?", axes.get_xlabel())
            assert float(said[1]) == pytest.approx(float(state.alpha[k]), rel=0.05)
            assert (said[2] is None) == bool(state.moving[k])
    assert wanted[-1].alpha.min() > 0


def test_the_classifiers_verdict_stands_above_every_frame(filmed):
    how = {"steps": 4, "t_star": 0.35}
    classifier, _ = weights.load("digits-cnn", "classifier")
    x = digits(SHOWN).x
    with torch.no_grad():
        frames = [x, *trace(purifier(how), x, source())]
        labels = torch.stack([classifier(frame).argmax(dim=1) for frame in frames], dim=1).tolist()
    assert any(len(set(row)) > 1 for row in labels)
    grid = filmed(how, f"--show.images={SHOWN}", "--show.classifier=digits-cnn")
    for row, wanted in zip(grid, labels, strict=True):
        assert [int(axes.get_title().rpartition("→")[2]) for axes in row] == wanted


def test_long_purifications_are_shown_in_a_dozen_columns(filmed):
    (row,) = filmed({"solver": "ddpm", "steps": 40}, "--show.images=1")
    assert [axes.get_title() for axes in row] == ["input", *(str(k) for k in range(0, 41, 4))]
    assert np.allclose(shown(row[-1]), np.load("out.npy")[0, 0], rtol=0, atol=1e-5)


def test_more_images_than_there_are_show_all_of_them(filmed):
    assert len(filmed(DIFFPURE, "--show.images=9")) == IMAGES


def test_without_a_strip_none_is_drawn(lustral):
    np.save("in.npy", digits(1).x.numpy())
    assert lustral("purify", "in.npy", "out.npy", "--purification.steps=1", "--show.images=1") == 0
    assert not list(Path().glob("*.png"))


def test_gated_adp_names_the_step_size_of_either_branch():
    """The field of clean digits is short, and that of noise is long."""
    x = torch.cat([digits(2).x, torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))])
    made = purifier({"method": "adp", "steps": 2, "gate": 7.0})
    assert made.condition(x).tolist() == [False, False, True, True]
    *_, last = strip.film(made, x, Key(0).rng(4))
    assert all(fact.startswith("α ") for fact in last.facts)
