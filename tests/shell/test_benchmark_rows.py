"""The runner of CIFAR-10's tables, on rows small enough to run here."""

import json
import re
from pathlib import Path

import pytest
from benchmarks import cifar10, cifar10_learned, tables, trainings

ROW = """# A title
data: digits
images: 2
stages: [clean, blind]
search: {steps: 1, eot: 1}
draws: 10
systems:
  raw: {purification: {method: none}}
  ddim: {purification: {solver: ddim, steps: 1}}
"""
PUBLISHED = {"small": {"raw": {"clean": 95.8, "source": "a paper", "why": "Other networks."}}}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    (tmp_path / "small.yaml").write_text(ROW, encoding="utf-8")
    (tmp_path / "corruptions.yaml").write_text(ROW.replace(", blind", ""), encoding="utf-8")
    (tmp_path / "published.json").write_text(json.dumps(PUBLISHED), encoding="utf-8")
    monkeypatch.setattr(cifar10, "CONFIGS", tmp_path)
    found = cifar10.rows()
    assert len(found) == 2 + 15  # the recommended defence is a row
    return {name: found[name] for name in ("small", "corruptions-contrast")}


def test_rows_run_once_and_have_a_page_and_a_bill(rows: dict, tmp_path: Path, capfd: pytest.CaptureFixture):
    runs = tmp_path / "runs"
    cifar10.run(runs, rows)
    shown = capfd.readouterr().out
    assert "row 1 of 2, small: 0% of the network calls are done\n" in shown
    assert re.search(
        r"row 2 of 2, corruptions-contrast: \d+% of the network calls are done, about \d+ min left\n", shown
    )
    table, sources, *_ = cifar10.page(runs, "small")
    (line,) = (line for line in table.rows if line[:2] == ["raw", "clean"])
    assert line[-3:] == ["2", "2", "95.80"]
    assert sources == "- raw: a paper. Other networks."
    assert json.loads((runs / "corruptions-contrast/run.json").read_text())["corruption"] == "contrast-3"
    (bill,) = cifar10.bill(runs, rows)
    assert [line[0] for line in bill.rows] == ["small", "corruptions-contrast", "all"]
    small, corrupted, both = (int(line[1].replace(",", "")) for line in bill.rows)
    assert small + corrupted == both
    assert corrupted == 2 + 2 * 10  # one draw suffices where nothing is drawn
    cifar10.run(runs, rows)
    assert "row" not in capfd.readouterr().out


def test_corruptions_share_a_table_and_detection_has_one(rows: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cifar10, "DETECTED", "small")
    monkeypatch.setattr(cifar10, "DETECTOR", ("--denoiser=digits-unet", "--sigma=0.1"))
    runs = tmp_path / "runs"
    cifar10.run(runs, rows)
    found = json.loads((runs / "corruptions-contrast/results.json").read_text())["rows"]
    accuracies = [f"{100 * row['accuracy']:.1f}%" for row in found]
    (table,) = cifar10.corruptions(runs, ["corruptions-contrast"])
    assert table == (["corruption", "raw", "ddim"], [["contrast", *accuracies], ["mean", *accuracies]])
    (table,) = cifar10.detect(runs)
    assert [line[:3] for line in table.rows] == [["raw", "blind", "2"], ["ddim", "blind", "2"]]
    (runs / "small/ledger.sqlite").unlink()
    assert cifar10.detect(runs) == [table], "what was measured is not measured again"


def test_a_row_whose_network_is_not_here_is_left_out(rows: dict, tmp_path: Path, capfd: pytest.CaptureFixture):
    (tmp_path / "small.yaml").write_text(ROW.replace("solver: ddim", "denoiser: mine, solver: ddim"), encoding="utf-8")
    assert list(cifar10.possible(rows)) == ["corruptions-contrast"]
    assert capfd.readouterr().out.startswith("row small is left out: Unknown weights 'mine'.")


def test_what_rows_say_of_each_other(tmp_path: Path):
    stages = 'stages: [clean, "null", blind, exact]'
    made = tmp_path / "row.yaml"
    made.write_text(ROW.replace("stages: [clean, blind]", stages).replace("images: 2", "images: 6"), encoding="utf-8")
    cifar10.run(tmp_path / "runs", {"row": (made, None)})
    rows = {(row["system"], row["stage"]): row for row in cifar10.results(tmp_path / "runs", "row")["rows"]}
    found = list(cifar10_learned.systems(tmp_path / "runs"))

    (raw, ddim) = cifar10_learned.gaps(found).rows
    for line, name in ((raw, "raw"), (ddim, "ddim")):
        blind, exact = rows[name, "blind"]["accuracy"], rows[name, "exact"]["accuracy"]
        assert line[:3] == ["row", name, "blind"]
        assert float(line[5]) == pytest.approx(100 * (blind - exact), abs=0.051)
        low, high = map(float, line[6].split(" to "))
        assert low <= float(line[5]) <= high

    (line,) = cifar10_learned.retries([found[1]]).rows
    worst = [rows["ddim", stage]["worst_of"]["10"] for stage in ("clean", "null", "exact")]
    assert [line[3], line[4], line[6]] == [tables.percent(value) for value in worst]
    clean = rows["ddim", "clean"]["accuracy"]
    assert line[8] == f"{(clean - worst[1]) / (clean - worst[2]):.0%}"

    ((*named, clean, exact, spent),) = cifar10_learned.additions(found).rows
    assert [*named, spent] == ["row", "raw", "ddim", "0.0 → 1.0"]
    for cell, stage in ((clean, "clean"), (exact, "exact")):
        gap = 100 * (rows["ddim", stage]["accuracy"] - rows["raw", stage]["accuracy"])
        assert float(cell.partition(" (")[0]) == pytest.approx(gap, abs=0.051)

    assert [line[:5] for line in cifar10_learned.costs(found).rows] == [
        ["digits-cnn", "6", "0.0", "row", "raw"],
        ["digits-cnn", "6", "1.0", "row", "ddim"],
    ]


def test_a_row_that_was_changed_is_not_shown_as_it_was(rows: dict, tmp_path: Path, capfd: pytest.CaptureFixture):
    only = {"corruptions-contrast": rows["corruptions-contrast"]}
    cifar10.run(tmp_path / "runs", only)
    (path, corruption) = only["corruptions-contrast"]
    assert cifar10.finished(tmp_path / "runs/corruptions-contrast", path, corruption)
    path.write_text(path.read_text(encoding="utf-8").replace("draws: 10", "draws: 12"), encoding="utf-8")
    with pytest.raises(SystemExit):
        cifar10.run(tmp_path / "runs", only)
    assert "holds another run" in capfd.readouterr().err


def test_an_interrupted_benchmark_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainings.subprocess, "run", interrupted)
    with pytest.raises(SystemExit, match="Interrupted; the same command goes on"):
        trainings.command("list")
