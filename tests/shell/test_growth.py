"""A run that goes on with more images is the run that had them from the start."""

import json
import sqlite3
from pathlib import Path

import pytest
import torch

import lustral as library
from digits import digits
from lustral.evaluate import certificate
from lustral.shell import plan
from lustral.shell.ledger import Ledger
from lustral.shell.options import Resources

RUN = ["--stages=clean,null,exact", "--search.steps=1", "--search.eot=1", "--draws=2", "--purification.steps=1"]
RUN += ["--micro-batch=8", "--resources.threads=1"]


@pytest.fixture(autouse=True)
def _short_certificates(monkeypatch):
    monkeypatch.setattr(certificate, "DRAWS", (2,))
    monkeypatch.setattr(certificate, "DIRECTIONS", 4)


def ledger_digest(folder: str) -> str:
    with Ledger(Path(folder, "ledger.sqlite")) as ledger:
        return ledger.digest()


def candidates(folder: str) -> dict:
    with sqlite3.connect(f"file:{folder}/ledger.sqlite?mode=ro", uri=True) as db:
        return {row[:3]: row[3:] for row in db.execute("SELECT * FROM candidates")}


def test_more_images_into_the_folder_of_a_run_keep_those_that_are_there(lustral, capfd):
    assert lustral("evaluate", "grown", *RUN, "--images=3") == 0
    with sqlite3.connect("grown/ledger.sqlite") as db:
        (before,) = db.execute("SELECT COUNT(*) FROM costs").fetchone()
    assert lustral("evaluate", "grown", *RUN, "--images=5") == 0
    with sqlite3.connect("grown/ledger.sqlite") as db:
        later = db.execute("SELECT stage, images FROM costs LIMIT -1 OFFSET ?", (before,)).fetchall()
    assert sorted(later) == [("clean", 2), ("exact", 2), ("null", 2)]
    assert lustral("evaluate", "whole", *RUN, "--images=5") == 0
    assert ledger_digest("grown") == ledger_digest("whole")
    assert candidates("grown") == candidates("whole")
    assert json.loads(Path("grown/run.json").read_text())["images"] == 5
    assert json.loads(Path("grown/results.json").read_text())["data"]["images"] == 5
    assert lustral("verify", "grown", "--images=5") == 0
    capfd.readouterr()
    assert lustral("evaluate", "grown", *RUN, "--images=4") == 2
    assert "grown holds 5 images of this run already, more than the 4 asked for" in capfd.readouterr().err


@pytest.mark.parametrize("other", [["--seed=1"], ["--draws=4"], ["--split=validation"]])
def test_more_images_of_another_run_are_refused(other, lustral, capfd):
    few = ["--stages=clean", "--draws=2", "--purification.steps=1"]
    assert lustral("evaluate", "run", *few, "--images=2") == 0
    whole = ledger_digest("run")
    assert lustral("evaluate", "run", *few, "--images=3", *other) == 2
    assert "holds another run" in capfd.readouterr().err
    assert ledger_digest("run") == whole


def test_a_kill_as_soon_as_a_run_grows_loses_nothing(lustral, monkeypatch):
    """The ledger is of more images, and run.json does not know it yet."""
    assert lustral("evaluate", "run", *RUN, "--images=3") == 0
    with monkeypatch.context() as killing:
        killing.setattr(plan, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert lustral("evaluate", "run", *RUN, "--images=5") == 130
    assert json.loads(Path("run/run.json").read_text())["images"] == 3
    assert len(plan.load(Path("run"), Resources()).data.ids) == 5
    assert len(candidates("run")) == 9
    assert lustral("evaluate", "run", *RUN, "--images=5") == 0
    assert len(candidates("run")) == 15


def test_a_run_of_assess_grows_and_its_first_measurements_are_made_again(tmp_path):
    defence = library.defend(library.classifier("digits-cnn"))
    asked = library.Linf(0.1), "smoke"
    alone = Resources(batch=1)  # so that networks see the same batches
    library.assess(defence, digits(2), *asked, out=tmp_path / "grown", resources=alone)
    library.assess(defence, digits(3), *asked, out=tmp_path / "grown", resources=alone)
    library.assess(defence, digits(3), *asked, out=tmp_path / "whole", resources=alone)
    assert ledger_digest(tmp_path / "grown") == ledger_digest(tmp_path / "whole")
    bodies = []
    for name in ("grown", "whole"):
        with Ledger(tmp_path / name / "ledger.sqlite") as ledger:
            bodies.append(ledger.certificate("defence"))
    assert bodies[0] == bodies[1]
    turned = digits(4)[torch.arange(4).flip(0)]
    with pytest.raises(library.UserError, match="holds another run"):
        library.assess(defence, turned, *asked, out=tmp_path / "grown")
