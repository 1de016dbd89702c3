import math
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from chunks import DRAWS, SPEC, chunk
from components import images
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.core.vote import Single
from lustral.evaluate.metrics import margins
from lustral.evaluate.protocol import Chunk
from lustral.evaluate.witness import Probe
from lustral.shell.ledger import Ledger


def read_everything(place: Path) -> None:
    with Ledger(place, SPEC) as found:
        found.done("s", "clean")
        found.outcomes("s", "clean")
        found.cost("s", "clean")
        found.digest()


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "run" / "ledger.sqlite"


@pytest.fixture
def ledger(place) -> Ledger:
    with Ledger(place, SPEC) as found:
        yield found


def test_what_is_written_is_read_back_to_the_bit_in_the_order_of_ids(ledger):
    ledger.write(chunk([4, 1]))
    ledger.write(chunk([3, 0]))
    expected, found = chunk([0, 1, 3, 4]), ledger.outcomes("s", "clean")
    for name in ("ids", "y", "logits", "repaired", "x"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.distance.float(), expected.distance)


def test_what_a_witness_saw_is_kept_read_merged_and_part_of_the_digest(tmp_path):
    written = chunk([4, 1])._replace(
        probes=(Probe(4, "path", 0, float("nan"), 2.0, 0.5), Probe(1, "step", 8, 1.0, 2.0))
    )
    digests = set()
    with Ledger(tmp_path / "a" / "ledger.sqlite", SPEC) as one, Ledger(tmp_path / "b" / "ledger.sqlite", SPEC) as other:
        other.write(written)
        one.take(other)
        first, second = one.probes("s")["clean"]
        digests.add(one.digest())
    assert first == Probe(1, "step", 8, 1.0, 2.0)
    assert (second[:3], second.measured, second.error, math.isnan(second.predicted)) == ((4, "path", 0), 2.0, 0.5, True)
    with Ledger(tmp_path / "c" / "ledger.sqlite", SPEC) as bare:
        bare.write(written._replace(probes=()))
        digests.add(bare.digest())
    assert len(digests) == 2


def test_a_ledger_from_before_there_were_witnesses_is_read_and_merged(ledger, place, tmp_path, monkeypatch):
    ledger.write(chunk([4, 1]))
    ledger.close()
    with sqlite3.connect(place) as database:
        database.execute("DROP TABLE probes")
        database.execute("PRAGMA journal_mode=DELETE")
    monkeypatch.setattr(os, "access", lambda *_: False)  # a folder that cannot be written
    with Ledger(place) as old, Ledger(tmp_path / "new" / "ledger.sqlite", SPEC) as new:
        assert old.probes("s") == {}
        new.take(old)
        assert new.digest() == old.digest()


def test_values_that_are_no_numbers_are_read_back(ledger):
    part = chunk([0, 1])
    part.found.loss[1] = torch.nan
    part.logits[1] = torch.nan
    ledger.write(part)
    found = ledger.outcomes("s", "clean")
    assert found.loss.isnan().tolist() == [False, True]
    assert ledger.standing("s", "clean", Single())[1].margin == -float("inf")


def test_every_draw_has_a_row_whose_label_and_margin_follow_from_its_logits(ledger):
    expected = chunk([4, 1])
    ledger.write(expected)
    columns, rows = ledger.draws()
    assert len(rows) == 2 * DRAWS
    for row in rows:
        image, draw, label, margin = (row[columns.index(name)] for name in ("image", "draw", "label", "margin"))
        i = expected.ids.tolist().index(image)
        assert label == int(expected.logits[i, draw].argmax())
        assert margin == pytest.approx(float(margins(expected.logits, expected.y)[i, draw]))


def test_what_is_done_survives_closing(ledger, place):
    ledger.write(chunk([4, 1]))
    ledger.write(chunk([2], stage="other"))
    ledger.close()
    with Ledger(place, SPEC) as again:
        assert again.done("s", "clean") == {1, 4}
        assert again.done("s", "other") == {2}
        assert again.done("t", "clean") == set()


def test_costs_add_up_over_chunks(ledger):
    ledger.write(chunk([4, 1], seconds=1.5))
    ledger.write(chunk([2], seconds=2.0))
    assert ledger.cost("s", "clean") == (3.5, 15, 6)


def test_the_digest_depends_on_neither_order_nor_chunks_nor_seconds(tmp_path):
    one, two = Ledger(tmp_path / "1.sqlite", SPEC), Ledger(tmp_path / "2.sqlite", SPEC)
    one.write(chunk([0, 1, 2, 3]))
    one.write(chunk([0, 1], stage="other"))
    two.write(chunk([1], stage="other", seconds=9.0))
    two.write(chunk([3, 1]))
    two.write(chunk([0], stage="other"))
    two.write(chunk([2, 0], seconds=7.0))
    assert one.digest() == two.digest()


def changed(found: NamedTuple, field: str) -> NamedTuple:
    """The same results but for the last bit of one value."""
    value = getattr(found, field).clone()
    value[1] = torch.nextafter(value[1], value[1] + 1) if value.is_floating_point() else value[1] ^ 1
    return found._replace(**{field: value})


@pytest.mark.parametrize("field", ["y", "x", "distance", "distance_8bit", "repaired", "logits"])
def test_the_digest_sees_the_smallest_change_of_any_result(tmp_path, field):
    assert digests(tmp_path, chunk([0, 1]), changed(chunk([0, 1]), field)) == 2


@pytest.mark.parametrize("field", ["loss", "wrong", "losses", "wrongs"])
def test_and_of_what_the_attack_saw(tmp_path, field):
    base = chunk([0, 1])
    assert digests(tmp_path, base, base._replace(found=changed(base.found, field))) == 2


def digests(tmp_path: Path, *parts: Chunk) -> int:
    """How many different digests the ledgers of these results have."""
    digests = set()
    for name, part in enumerate(parts):
        with Ledger(tmp_path / f"{name}.sqlite", SPEC) as found:
            found.write(part)
            digests.add(found.digest())
    return len(digests)


def test_the_digest_sees_the_runs_identity(tmp_path):
    assert Ledger(tmp_path / "1.sqlite", SPEC).digest() != Ledger(tmp_path / "2.sqlite", SPEC | {"torch": "9"}).digest()


def test_another_run_is_refused_and_the_difference_named(ledger, place):
    ledger.write(chunk([1]))
    before = ledger.digest()
    other = {"key": {"seed": 7}, "jobs": SPEC["jobs"], "torch": "9"}
    with pytest.raises(UserError, match=r"holds another run.*key\.seed: 0 → 7; torch: null → \"9\""):
        Ledger(place, other)
    assert ledger.digest() == before


def test_of_two_runs_that_start_at_once_one_is_refused(tmp_path, monkeypatch):
    """Both have opened the empty file before either says whose it is."""
    both, claim = threading.Barrier(2), Ledger._claimed

    def together(self, spec, data):
        both.wait(10)
        return claim(self, spec, data)

    monkeypatch.setattr(Ledger, "_claimed", together)

    def start(torch):
        try:
            Ledger(tmp_path / "one.sqlite", SPEC | {"torch": torch}).close()
        except UserError as e:
            return str(e)

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(start, "12"))
    assert [line is None for line in said].count(True) == 1
    assert "holds another run" in next(line for line in said if line)


def test_the_same_run_is_welcome_whatever_the_order_of_its_description(ledger, place):
    ledger.write(chunk([1]))
    with Ledger(place, dict(reversed(SPEC.items()))) as again:
        assert again.digest() == ledger.digest()


def test_readers_see_whole_chunks_while_one_is_written(ledger, place):
    """Write-ahead logging: a reader is not blocked by a writer, and sees what was committed."""
    ledger.write(chunk([1]))
    writer = sqlite3.connect(place, isolation_level=None)
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM candidates")
    with Ledger(place) as reader:
        assert reader.done("s", "clean") == {1}
    writer.execute("ROLLBACK")


@pytest.mark.parametrize("table", ["candidates", "draws", "costs"])
def test_a_chunk_that_fails_half_way_leaves_nothing(ledger, place, table):
    ledger.write(chunk([1]))
    before = ledger.digest(), ledger.cost("s", "clean")
    with sqlite3.connect(place) as db:
        db.execute(f"CREATE TRIGGER no BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(UserError):
        ledger.write(chunk([2, 3]))
    assert (ledger.digest(), ledger.cost("s", "clean")) == before
    with sqlite3.connect(place) as db:
        db.execute("DROP TRIGGER no")
    ledger.write(chunk([2, 3]))
    assert ledger.done("s", "clean") == {1, 2, 3}


def test_a_second_writer_of_the_same_images_is_told_so(ledger):
    ledger.write(chunk([1, 2]))
    before = ledger.digest()
    with pytest.raises(UserError, match="another process"):
        ledger.write(chunk([3, 2]))
    assert ledger.digest() == before


def test_a_full_disk_is_said_and_leaves_the_ledger_as_it_was(ledger, place, full_disk):
    ledger.write(chunk([1]))
    digests = []

    def fill() -> None:
        for i in range(2, 200):
            digests.append(ledger.digest())
            ledger.write(chunk([i], stage="more"))

    with full_disk(place.stat().st_size + 8192), pytest.raises(UserError, match="disk"):
        fill()
    assert ledger.digest() == digests[-1]
    ledger.close()
    with Ledger(place, SPEC) as again:
        assert again.digest() == digests[-1]


def test_a_file_that_is_no_database_is_refused_and_left_alone(place):
    place.parent.mkdir()
    place.write_text("no database, but quite a long text " * 100)
    for spec in (SPEC, None):
        with pytest.raises(UserError, match=r"no ledger or is damaged.*move it away"):
            Ledger(place, spec)
    assert place.read_text().startswith("no database")
    assert [p.name for p in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_truncated_ledger_is_refused(ledger, place, keep):
    ledger.write(chunk(list(range(30))))
    ledger.close()
    content = place.read_bytes()
    place.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match="damaged"):
        read_everything(place)


def test_damage_anywhere_ends_in_a_sentence_or_is_harmless(ledger, place):
    """Noise over some bytes of the file: what can still be read may be read; nothing but a sentence is raised."""
    for first in range(0, 60, 5):
        ledger.write(chunk(list(range(first, first + 5))))
    ledger.close()
    content, refused = place.read_bytes(), 0
    for seed in range(80):
        size = (16, 512, 4096)[seed % 3]
        noise, where = Key(seed).rng(1).uniform(torch.empty(1, 4097)), bytearray(content)
        start = int(noise[0, 4096] * (len(content) - size))
        where[start : start + size] = (255 * noise[0, :size]).byte().numpy().tobytes()
        place.write_bytes(where)
        try:
            read_everything(place)
        except UserError as e:
            assert "damaged" in str(e) or "Cannot use" in str(e) or "holds" in str(e), e
            refused += 1
    assert refused > 30


def test_a_folder_without_a_run_is_said(tmp_path):
    with pytest.raises(UserError, match="There is no run at"):
        Ledger(tmp_path / "ledger.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_cannot_be_written_is_read(tmp_path, tree, monkeypatch):
    place = tmp_path / "ledger.sqlite"
    with Ledger(place, SPEC) as made:
        made.write(chunk([0, 1]))
    before = tree(tmp_path)
    monkeypatch.setattr(os, "access", lambda where, mode: Path(where) != tmp_path or mode != os.W_OK)
    with Ledger(place) as found, Ledger(tmp_path / "other" / "ledger.sqlite", SPEC) as other:
        assert found.outcomes("s", "clean").ids.tolist() == [0, 1]
        other.take(found)
        assert other.done("s", "clean") == {0, 1}
        with pytest.raises(UserError, match="readonly"):
            found.write(chunk([2]))
    assert {name: content for name, content in tree(tmp_path).items() if "other" not in str(name)} == before
    place.with_name("ledger.sqlite-wal").touch()
    with pytest.raises(UserError, match="was left open"):
        Ledger(place)


def test_what_was_never_run_is_said(ledger):
    with pytest.raises(UserError, match="nothing for system 's' and stage 'clean'"):
        ledger.outcomes("s", "clean")


def test_images_of_other_shapes_keep_theirs(ledger):
    colour = images(2, (3, 4, 6))
    ledger.write(chunk([0, 1])._replace(x=colour))
    assert torch.equal(ledger.outcomes("s", "clean").x, colour)
