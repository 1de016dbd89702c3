"""What a ledger is made of: what contradicts itself, what could be endless, what an older one held."""

import math
import os
import sqlite3
import zlib
from pathlib import Path

import pytest
import torch

from chunks import SPEC, chunk
from lustral.core.errors import UserError
from lustral.core.vote import MeanLogits, Single
from lustral.evaluate.witness import Probe
from lustral.shell import sameness
from lustral.shell.ledger import Ledger


def written(place: Path, *parts) -> Path:
    with Ledger(place / "ledger.sqlite", SPEC) as ledger:
        for part in parts:
            ledger.write(part)
        ledger.certify("s", {"moved": 0.5})
    return place / "ledger.sqlite"


SPOILS = {
    "candidates": "UPDATE candidates SET distance = distance + 0.25 WHERE image = 4",
    "an image": "UPDATE candidates SET x = (SELECT x FROM candidates WHERE image = 1) WHERE image = 4",
    "draws": "UPDATE draws SET logits = (SELECT logits FROM draws WHERE image = 1 AND draw = 0) WHERE image = 4",
    "probes": "UPDATE probes SET measured = 7 WHERE image = 4",
    "certificates": "UPDATE certificates SET body = '{}'",
}


@pytest.mark.parametrize("table", SPOILS)
def test_shards_that_contradict_each_other_are_not_merged(tmp_path, table):
    """In whatever order: neither is believed."""
    one, other = written(tmp_path / "one", chunk([1, 4])), written(tmp_path / "other", chunk([1, 4]))
    with sqlite3.connect(other) as db:
        assert db.execute(SPOILS[table]).rowcount
    for first, second in ((one, other), (other, one)):
        with Ledger(tmp_path / f"from {first.parent.name}" / "ledger.sqlite", SPEC) as merged, Ledger(first) as a:
            merged.take(a)
            before = merged.digest()
            with Ledger(second) as b, pytest.raises(UserError, match="contradicts .* differ.*leave that one out"):
                merged.take(b)
            assert merged.digest() == before


def test_shards_that_say_the_same_twice_are_merged_though_another_compressor_packed_them(tmp_path):
    one, other = written(tmp_path / "one", chunk([1, 4])), written(tmp_path / "other", chunk([1, 4]), chunk([5]))
    with sqlite3.connect(other) as db:
        for image, x in db.execute("SELECT image, x FROM candidates").fetchall():
            packed = zlib.compress(zlib.decompress(x), 0)
            db.execute("UPDATE candidates SET x = ? WHERE image = ?", (packed, image))
    with Ledger(one, SPEC) as merged, Ledger(other) as more:
        merged.take(more)
        assert merged.done("s", "clean") == {1, 4, 5}
        assert merged.digest() == more.digest()


COLUMNS = [
    *(("candidates", name) for name in ("distance_8bit", "repaired", "looks", "label")),
    *(("probes", name) for name in ("predicted", "measured", "error")),
    *(("costs", name) for name in ("images", "backward")),
]


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_the_digest_sees_every_column_that_a_number_or_a_finding_is_made_of(tmp_path, table, column):
    place = written(tmp_path, chunk([1, 4]))
    with Ledger(place) as ledger:
        before = ledger.digest()
    with sqlite3.connect(place) as db:
        db.execute(f"UPDATE {table} SET {column} = {column} + 1")
    with Ledger(place) as ledger:
        assert ledger.digest() != before


def test_the_digest_sees_certificates_and_neither_seconds_nor_rows_forward(tmp_path):
    with Ledger(written(tmp_path, chunk([1, 4])), SPEC) as ledger:
        before = ledger.digest()
        ledger._db.execute("UPDATE costs SET seconds = seconds + 1, forward = forward + 1")
        assert ledger.digest() == before
        ledger.certify("s", {})
        assert ledger.digest() != before


def test_facts_are_kept_replaced_and_forgotten(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", SPEC) as ledger:
        ledger.note(width=0.2, command="lustral evaluate")
        ledger.note(width=0.1, command=None)
        assert ledger.facts() == {"width": 0.1}


def test_a_ledger_of_the_version_before_is_read_and_goes_on(tmp_path, monkeypatch):
    place = written(tmp_path / "old", chunk([1, 4]))
    with sqlite3.connect(place) as db:
        for line in (
            "ALTER TABLE draws ADD COLUMN label INTEGER",
            "ALTER TABLE draws ADD COLUMN margin REAL",
            "DROP TABLE facts",
            "PRAGMA user_version=2",
            "PRAGMA journal_mode=DELETE",
        ):
            db.execute(line)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # a folder that cannot be written
        with Ledger(place) as old:
            assert old.facts() == {}
            digest = old.digest()
    with Ledger(place, SPEC) as again:
        again.write(chunk([2]))
        assert again.done("s", "clean") == {1, 2, 4}
        again._db.execute("DELETE FROM candidates WHERE image = 2")
        again._db.execute("DELETE FROM draws WHERE image = 2")
        again._db.execute("DELETE FROM probes WHERE image = 2")
        again._db.execute("DELETE FROM costs WHERE images = 1")
        assert again.digest() == digest


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 's', 'clean', i FROM n"


@pytest.mark.parametrize(
    "lines",
    [
        ("DROP TABLE costs", f"CREATE VIEW costs AS {ENDLESS}"),
        ("CREATE TRIGGER t AFTER INSERT ON draws BEGIN DELETE FROM candidates; END",),
    ],
    ids=["a view", "a trigger"],
)
def test_what_could_be_endless_is_no_ledger(tmp_path, lines):
    place = written(tmp_path, chunk([1]))
    with sqlite3.connect(place) as db:
        for line in lines:
            db.execute(line)
    with pytest.raises(UserError, match="which no ledger has"):
        Ledger(place)


def spoilt(place: Path, line: str, *values) -> Ledger:
    with sqlite3.connect(place) as db:
        db.execute(line, values)
    return Ledger(place)


def test_an_image_that_grows_without_end_costs_no_memory(tmp_path):
    bomb = zlib.compress(bytes(2**26))
    with spoilt(written(tmp_path, chunk([1])), "UPDATE candidates SET x = ?", bomb) as ledger:
        for read in (ledger.digest, lambda: ledger.outcomes("s", "clean")):
            with pytest.raises(UserError, match="damaged .an image that has not the size of its shape"):
                read()


@pytest.mark.parametrize("shape", ["[1000000, 1000000, 3]", "[-1, 4, 4]", "{}", "[" * 100_000])
def test_and_neither_does_one_that_says_so(tmp_path, shape):
    with (
        spoilt(written(tmp_path, chunk([1])), "UPDATE candidates SET shape = ?", shape) as ledger,
        pytest.raises(UserError, match="damaged"),
    ):
        ledger.outcomes("s", "clean")


@pytest.mark.parametrize("body", ["", "[]", '{"a": ', "[" * 100_000, "null"])
def test_damaged_json_is_a_sentence(tmp_path, body):
    with (
        spoilt(written(tmp_path / "a", chunk([1])), "UPDATE certificates SET body = ?", body) as ledger,
        pytest.raises(UserError, match="damaged"),
    ):
        ledger.certificate("s")
    with (
        spoilt(written(tmp_path / "b", chunk([1])), "UPDATE run SET spec = ?", body) as ledger,
        pytest.raises(UserError, match="damaged"),
    ):
        ledger.spec()


def found(logits: torch.Tensor, **other) -> dict[str, torch.Tensor]:
    parts = {
        "x": torch.full((1, 2, 2), 0.5),
        "repaired": torch.zeros(()),
        "loss": logits[:1, 0],
        "wrong": torch.zeros(2),
    }
    return parts | {"logits": logits} | other


LOGITS = torch.tensor([[3.0, 1.0], [2.5, 1.5]])
CLEAN = torch.full((1, 2, 2), 0.45)


@pytest.mark.parametrize("size", [1e-5, 1.0, 1e5])
def test_a_difference_of_logits_is_measured_by_their_size(size):
    """With a last layer scaled down, 1e-3 on logits would be everything."""
    before, near, far = (found(size * logits) for logits in (LOGITS, LOGITS + 3e-4, LOGITS * 1.01))
    assert sameness.gap(before, near, CLEAN, Single()) < sameness.TOLERANCE < sameness.gap(before, far, CLEAN, Single())


def test_another_decision_is_another_result_however_near_the_logits_are():
    a, b = torch.tensor([[1.0, 1.0 + 1e-7]]), torch.tensor([[1.0 + 1e-7, 1.0]])
    assert sameness.gap(found(a), found(b), CLEAN, Single()) == math.inf


def test_no_class_with_huge_logits_covers_anothers_and_the_vote_decides_too():
    """A class that nobody answers may have −1e6; a vote of means may turn where no draw does."""
    before = torch.tensor([[1.0, 0.0, -1e6], [0.0, 0.2, -1e6], [0.0, 0.3, -1e6]])
    lifted = before + torch.tensor([[900.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert sameness.gap(found(before), found(lifted), CLEAN, Single()) > sameness.TOLERANCE
    turned = before + torch.tensor([[-0.9, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert sameness.gap(found(before), found(turned), CLEAN, MeanLogits(3)) == math.inf


def probe(kind: str, *values: float) -> Probe:
    return Probe(1, kind, 1, *values)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("step", (1.0, 1.0, 0.0), (1.0, 0.2, 0.0)),
        ("step", (1e-9, 1e-9, 0.0), (1.0, 0.2, 0.0)),
        ("across", (0.0, 0.1, 1e12), (0.0, 0.9, 0.1)),
        ("across", (0.0, 0.9, 1e12), (0.0, 0.9, 0.1)),
        ("path", (1.0, 3.0, 1e12), (1.0, 3.0, 0.1)),
        ("asked", (0.0, 0.0, 0.0), (0.0, 0.5, 0.0)),
    ],
)
def test_a_probe_that_says_something_else_is_another(kind, old, new):
    assert not sameness.same_probe(probe(kind, *old), probe(kind, *new), 10.0)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("step", (1.0, 1.001, 0.0), (0.25, 0.2501, 0.0)),  # the other length is the better one
        ("step", (1e-7, -1e-7, 0.0), (2e-7, 1e-7, 0.0)),  # rounding
        ("across", (0.01, 0.012, 0.001), (0.01, 0.011, 0.002)),
        ("later", (0.0, 2e-7, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_rounding_makes_no_other_probe(kind, old, new):
    assert sameness.same_probe(probe(kind, *old), probe(kind, *new), 10.0)


def test_rows_that_are_there_twice_are_no_ledger(tmp_path):
    place = written(tmp_path, chunk([1, 4]))
    with sqlite3.connect(place) as db:
        for line in (
            "CREATE TABLE n AS SELECT * FROM candidates",
            "INSERT INTO n SELECT * FROM candidates WHERE image = 1",
            "DROP TABLE candidates",
            "ALTER TABLE n RENAME TO candidates",
        ):
            db.execute(line)
    with pytest.raises(UserError, match="its candidates may be there twice"):
        Ledger(place)


def test_shards_that_ran_the_same_images_each_for_itself_are_not_merged(tmp_path):
    """Or what they cost would count twice."""
    one = written(tmp_path / "one", chunk([1, 4]))
    other = written(tmp_path / "other", chunk([4], seconds=2.0), chunk([5], seconds=3.0))
    with Ledger(one, SPEC) as merged, Ledger(other) as more:
        before = merged.digest()
        with pytest.raises(UserError, match="have each run images of s, clean"):
            merged.take(more)
        assert merged.digest() == before


def test_a_look_that_says_no_number_is_a_look(tmp_path):
    """Its loss is none; that it was taken, its share of wrong draws says."""
    part = chunk([0, 1])
    part.found.losses[0, 1] = math.nan
    with Ledger(tmp_path / "ledger.sqlite", SPEC) as ledger:
        ledger.write(part)
        kept = ledger.outcomes("s", "clean")
    assert [len(one) for one in kept.losses] == [len(one) for one in kept.wrongs] == [4, 2]
    assert math.isnan(kept.losses[0][1])


@pytest.mark.parametrize("name", ["ledger.sqlite", "ledger.sqlite-journal", "ledger.sqlite-wal"])
def test_a_ledger_that_is_a_pipe_is_said_to_be(tmp_path, name):
    written(tmp_path, chunk([1]))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is a pipe"):
        Ledger(tmp_path / "ledger.sqlite")


def test_a_candidate_is_measured_by_its_distance_from_the_clean_image():
    moved = found(LOGITS, x=torch.full((1, 2, 2), 0.5 + 2e-4))
    assert sameness.gap(found(LOGITS), moved, CLEAN, Single()) > sameness.TOLERANCE
    assert sameness.gap(found(LOGITS), moved, CLEAN - 0.45, Single()) < sameness.TOLERANCE


def test_what_is_not_a_number_on_both_sides_is_the_same():
    loss = torch.tensor([1.0, math.nan, math.inf])
    assert sameness.gap(found(LOGITS, loss=loss), found(LOGITS, loss=loss.clone()), CLEAN, Single()) == 0
    for other in ([1.0, 2.0, math.inf], [1.0, math.nan, 2.0], [math.nan, math.nan, math.inf], [1.0]):
        assert (
            sameness.gap(found(LOGITS, loss=loss), found(LOGITS, loss=torch.tensor(other)), CLEAN, Single()) == math.inf
        )


def test_parts_of_json_are_alike_up_to_rounding_alone():
    a = {"p": [Probe(1, "step", 1, 0.5, math.nan)], "n": 1, "t": True}
    b = {"p": [[1, "step", 1, 0.5 + 1e-12, math.nan, 0.0]], "n": 1, "t": True}
    assert sameness.alike(a, b)
    for other in ({"n": 2}, {"t": 1}, {"p": []}, {"p": [[1, "step", 1, 0.51, math.nan, 0.0]]}):
        assert not sameness.alike(a, b | other)
