"""Whoever owns a run can write anything into its folder: in these ways somebody did, and `lustral verify` says so."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lustral.core.spec import digest
from lustral.shell.cli import main

ARGS = ["--suite=smoke", "--images=6", "--purification.method=none", "--threat.eps=0.08", "--resources.threads=1"]


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """A finished run in which the attacks won some images and lost some, and its folder."""
    folder = tmp_path_factory.mktemp("forger") / "run"
    assert main(["evaluate", str(folder), *ARGS]) == 0
    worst = next(row for row in results(folder)["rows"] if row["stage"] == "worst")
    assert 0 < worst["accuracy"] < 1, "or there is nothing to forge"
    return folder


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def sql(*lines: str) -> Callable[[Path], None]:
    """Changes the ledger, and has results, pictures and page written anew, as its owner can."""

    def forge(place: Path) -> None:
        with sqlite3.connect(place / "ledger.sqlite") as db:
            changed = [db.execute(line).rowcount for line in lines]
        assert changed[-1] > 0, "the line changes nothing"
        assert main(["evaluate", str(place), *ARGS]) == 0

    return forge


def without_lost_images(width: float | None = None) -> Callable[[Path], None]:
    """Leaves the images that the attacks did not win; with ``width``, the run says besides that it stopped early."""

    def forge(place: Path) -> None:
        found = results(place)
        right = found["details"]["undefended"]["draws_right"]
        lost = [i for i, good in zip(_ids(place, "worst"), right, strict=True) if not good]
        lost += sorted(set(_ids(place, "clean")) - set(_ids(place, "worst")))
        names = ", ".join(map(str, lost))
        with sqlite3.connect(place / "ledger.sqlite") as db:
            for table in ("candidates", "draws", "probes"):
                db.execute(f"DELETE FROM {table} WHERE image IN ({names})")
            if width is not None:
                db.execute("INSERT INTO facts VALUES ('width', ?)", (json.dumps(width),))
        _folded(place)
        assert next(row for row in results(place)["rows"] if row["stage"] == "worst")["accuracy"] == 1

    return forge


def _ids(place: Path, stage: str) -> list[int]:
    with sqlite3.connect(place / "ledger.sqlite") as db:
        return [i for (i,) in db.execute("SELECT image FROM candidates WHERE stage = ? ORDER BY image", (stage,))]


def _folded(place: Path) -> None:
    """Results of the ledger as it is, without running what is missing."""
    from lustral.shell import plan
    from lustral.shell.options import Resources

    planned = plan.load(place, Resources())
    plan.finish(planned, place, "lustral evaluate", False)


def edited(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Changes results.json, and has the page written anew."""

    def forge(place: Path) -> None:
        found = results(place)
        change(found)
        (place / "results.json").write_text(json.dumps(found))
        assert main(["report", str(place)]) == 0

    return forge


def taken_out(place: Path) -> None:
    with sqlite3.connect(place / "ledger.sqlite") as db:
        db.execute("DELETE FROM draws WHERE stage = 'null'")


def without_suite(place: Path) -> None:
    with sqlite3.connect(place / "ledger.sqlite") as db:
        spec = json.loads(db.execute("SELECT spec FROM run").fetchone()[0])
        del spec["suite"]
        db.execute("UPDATE run SET digest = ?, spec = ?", (digest(spec), json.dumps(spec)))
        db.execute("UPDATE certificates SET body = '{}'")
    _folded(place)


def page(place: Path) -> None:
    text = (place / "report.html").read_text()
    (place / "report.html").write_text(text.replace("withheld", "held").replace("%", "&nbsp;%", 3))


def black(place: Path) -> None:
    with np.load(place / "pictures.npz") as found:
        arrays = {name: np.zeros_like(array) for name, array in found.items()}
    np.savez_compressed(place / "pictures.npz", **arrays)


SWAP = """UPDATE candidates SET x = (
    SELECT x FROM candidates o WHERE o.stage = candidates.stage AND o.image != candidates.image LIMIT 1
) WHERE stage = 'apgd-margin'"""

WAYS = {
    "images that the attacks won are taken out": (without_lost_images(), "images were taken out"),
    "and the run says that it stopped early": (without_lost_images(0.9), "images were taken out"),
    "logits are swapped": (
        sql("UPDATE draws SET logits = (SELECT logits FROM draws o WHERE o.image != draws.image LIMIT 1)"),
        "The ledger differs at",
    ),
    "candidates are those of other images": (sql(SWAP), "The ledger differs at"),
    "clean images stand for attacked ones": (
        sql(
            "UPDATE candidates SET x = (SELECT x FROM candidates o WHERE o.stage = 'clean' AND o.image = candidates."
            "image), distance = 0, distance_8bit = 0 WHERE stage IN ('apgd-margin', 'worst')"
        ),
        "The ledger differs at",
    ),
    "labels are what was answered": (
        sql("UPDATE candidates SET label = (label + 1) % 10 WHERE stage = 'worst'"),
        "labels are not those that follow",
    ),
    "draws are taken out": (taken_out, "draws of undefended, null are missing"),
    "draws are told twice": (
        sql("INSERT INTO draws SELECT system, stage, image, 1, logits FROM draws WHERE stage = 'null'"),
        "numbers of draws are not those that follow",
    ),
    "distances are smaller": (sql("UPDATE candidates SET distance_8bit = distance_8bit / 2"), "its distances are not"),
    "what was mended is not said": (
        sql("UPDATE candidates SET repaired = 1 - repaired WHERE stage = 'apgd-margin'"),
        "The ledger differs at",
    ),
    "what the attack saw is another thing": (
        sql("UPDATE candidates SET wrongs = losses WHERE stage = 'exact'"),
        "The ledger differs at",
    ),
    "probes are taken out": (sql("DELETE FROM probes WHERE kind = 'step'"), "its probes are others"),
    "probes say what they should": (
        sql("UPDATE probes SET measured = predicted * 1.5 WHERE kind = 'step'"),
        "in a probe",
    ),
    "probes may be as far off as they like": (sql("UPDATE probes SET error = 1e12"), "in a probe"),
    "its suite is not said, nor its certificate": (without_suite, "cannot be run again as it was"),
    "another system's certificate is there": (
        sql("INSERT INTO certificates SELECT 'other', body FROM certificates"),
        "a certificate of other, which is no system of its run",
    ),
    "more was spent": (
        sql("UPDATE costs SET forward = forward * 1000000, backward = backward * 1000000"),
        "more network rows",
    ),
    "it began with another torch": (
        sql("UPDATE facts SET value = json_set(value, '$.torch', '9.9') WHERE name = 'versions'"),
        "names other versions of torch",
    ),
    "the certificate is empty": (sql("UPDATE certificates SET body = '{}'"), "The certificate of undefended"),
    "the certificate says what it should": (
        sql("UPDATE certificates SET body = json_set(body, '$.finite_difference', 0.5)"),
        "The certificate of undefended",
    ),
    "less was spent": (sql("UPDATE costs SET forward = 1, backward = 1"), "network rows"),
    "a number of the results is another": (
        edited(lambda found: found["rows"][-1].update(accuracy=0.97)),
        "does not say what its ledger does",
    ),
    "the command is another": (edited(lambda found: found.update(command="lustral evaluate x")), "does not say"),
    "the versions are others": (edited(lambda found: found["versions"].update(torch="9.9")), "does not say"),
    "the version of Lustral is another": (edited(lambda found: found.update(lustral="9.9")), "does not say"),
    "the page says something else": (page, "is not the page of the results"),
    "the pictures are black": (black, "does not hold the ledger's pictures"),
    "the results are gone": (lambda place: (place / "results.json").unlink(), "is finished, but of results.json"),
    "the page is gone": (lambda place: (place / "report.html").unlink(), "is finished, but of results.json"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_forged_is_noticed(way, honest, tmp_path, lustral, capfd):
    forge, words = WAYS[way]
    place = Path(shutil.copytree(honest, tmp_path / "copy"))
    forge(place)
    capfd.readouterr()
    assert lustral("verify", place, "--images=6") == 2
    assert words in capfd.readouterr().err


@pytest.mark.parametrize("threads", [1, 2])
def test_what_was_not_forged_is_equal_to_the_bit(threads, honest, lustral, capfd):
    assert lustral("verify", honest, "--images=6", f"--resources.threads={threads}") == 0
    assert "equal to the bit. Results, pictures and page are what the ledger says" in capfd.readouterr().out
