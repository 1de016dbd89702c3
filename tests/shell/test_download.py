"""Fetching against a server of our own on this machine, which can break off, forget and lie."""

import gzip
import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lustral.core.errors import UserError
from lustral.shell.images import data, download
from mirror import Mirror, serving

N = {"train": 12, "t10k": 3}


def idx(stem: str) -> dict[str, bytes]:
    """MNIST's two files of one split: images of 40×40, by formula, large enough to break off in the middle."""
    n = N[stem]
    pixels = hashlib.shake_256(stem.encode()).digest(n * 1600)  # which gzip cannot make small
    images = struct.pack(">IIII", 2051, n, 40, 40) + pixels
    labels = struct.pack(">II", 2049, n) + bytes(i % 10 for i in range(n))
    return {
        f"{stem}-images-idx3-ubyte.gz": gzip.compress(images, mtime=0),
        f"{stem}-labels-idx1-ubyte.gz": gzip.compress(labels, mtime=0),
    }


FILES = idx("train") | idx("t10k")
LARGE = "train-images-idx3-ubyte.gz"


@pytest.fixture
def mirror(monkeypatch) -> Iterator[Mirror]:
    sums = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setitem(download.ORIGINS, "mnist", download.Origin("http://127.0.0.1:1/nobody", sums))
    with serving(FILES, LARGE) as server:
        yield server


@pytest.fixture
def place(monkeypatch, tmp_path) -> Path:
    """Where the set goes: a folder in a data folder of its own."""
    monkeypatch.setenv("LUSTRAL_DATA", str(tmp_path))
    return tmp_path / "mnist"


def whole(place: Path) -> bool:
    """Whether the published files are there, and nothing else."""
    return {p.name: p.read_bytes() for p in place.iterdir()} == FILES


def test_a_set_is_fetched_and_read(mirror, place):
    assert download.fetch("mnist", place, mirror.url)
    assert whole(place)
    assert [name for name, _ in mirror.asked] == list(FILES)
    assert len(data.load("mnist", "train").ids) == 12
    assert data.load("mnist", "test").ids.tolist() == [12, 13, 14]


def test_a_set_that_is_there_is_not_fetched_again(mirror, place):
    download.fetch("mnist", place, mirror.url)
    mirror.asked.clear()
    assert not download.fetch("mnist", place, mirror.url)
    assert not mirror.asked


def test_unpacked_files_count_as_there(mirror, place):
    place.mkdir()
    for name, content in FILES.items():
        (place / name.removesuffix(".gz")).write_bytes(gzip.decompress(content))
    assert not download.fetch("mnist", place, mirror.url)
    assert not mirror.asked


def test_only_what_is_missing_or_damaged_is_fetched(mirror, place):
    download.fetch("mnist", place, mirror.url)
    mirror.asked.clear()
    (place / LARGE).write_bytes(FILES[LARGE][:1000])
    assert download.fetch("mnist", place, mirror.url)
    assert mirror.asked == [(LARGE, None)]
    assert whole(place)


def test_a_broken_connection_goes_on_where_it_broke(mirror, place):
    mirror.cuts = [9000, 5000]
    assert download.fetch("mnist", place, mirror.url)
    assert [asked for name, asked in mirror.asked if name == LARGE] == [None, "bytes=9000-", "bytes=14000-"]
    assert whole(place)


def test_where_nothing_more_comes_the_next_command_goes_on(mirror, place):
    mirror.cuts = [9000, 0]
    with pytest.raises(UserError, match=r"broke after 0\.0 MB; run the same command again"):
        download.fetch("mnist", place, mirror.url)
    assert [p.name for p in place.iterdir()] == [f"{LARGE}.part"]
    assert (place / f"{LARGE}.part").read_bytes() == FILES[LARGE][:9000]
    mirror.asked.clear()
    assert download.fetch("mnist", place, mirror.url)
    assert mirror.asked[0] == (LARGE, "bytes=9000-")
    assert whole(place)


def test_a_server_that_knows_no_ranges_starts_over(mirror, place):
    place.mkdir()
    (place / f"{LARGE}.part").write_bytes(b"x" * 9000)
    mirror.ranges = False
    assert download.fetch("mnist", place, mirror.url)
    assert whole(place)


def test_a_part_that_was_complete_only_gets_its_name(mirror, place):
    place.mkdir()
    (place / f"{LARGE}.part").write_bytes(FILES[LARGE])
    assert download.fetch("mnist", place, mirror.url)
    assert whole(place)


def test_a_wrong_checksum_removes_the_file(mirror, place):
    mirror.files[LARGE] = FILES[LARGE][:-1] + b"x"
    with pytest.raises(UserError, match=f"{LARGE} from .* does not have the published checksum and was removed"):
        download.fetch("mnist", place, mirror.url)
    assert not list(place.iterdir())


def test_a_foreign_part_ends_in_a_wrong_checksum_and_not_in_a_file(mirror, place):
    place.mkdir()
    (place / f"{LARGE}.part").write_bytes(b"x" * 9000)
    with pytest.raises(UserError, match="does not have the published checksum"):
        download.fetch("mnist", place, mirror.url)
    assert not list(place.iterdir())


def test_a_folder_is_copied_from_after_a_check(mirror, place, tmp_path):
    source = tmp_path / "stick"
    source.mkdir()
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    assert download.fetch("mnist", place, str(source))
    assert whole(place)
    assert not mirror.asked
    (place / LARGE).unlink()
    (source / LARGE).write_bytes(b"x")
    with pytest.raises(UserError, match="does not have the published checksum; find another copy"):
        download.fetch("mnist", place, str(source))
    assert not (place / LARGE).exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "Cannot reach .*; check the network, or name another mirror or a folder .* with --from"),
        ("ftp://127.0.0.1/", "neither a folder nor an address with http"),
        ("nowhere", f"nowhere lacks {LARGE}; .* can be used as --data nowhere"),
    ],
    ids=["offline", "another protocol", "no such folder"],
)
def test_no_way_to_the_files_is_one_sentence(mirror, place, source, words):
    with pytest.raises(UserError, match=words):
        download.fetch("mnist", place, source)
    assert not place.exists() or not list(place.iterdir())


def test_a_mirror_without_the_file_is_one_sentence(mirror, place):
    mirror.files.clear()
    with pytest.raises(UserError, match="answered 404 Not Found; name another mirror"):
        download.fetch("mnist", place, mirror.url)


def test_unknown_sets_are_refused(place):
    with pytest.raises(UserError, match="Did you mean 'cifar10'"):
        download.fetch("cifar-10", place)


def test_a_full_disk_is_said_and_the_part_stays(mirror, place, full_disk):
    with full_disk(4000), pytest.raises(UserError, match="Cannot write .*part: .*; free some space"):
        download.fetch("mnist", place, mirror.url)
    assert [p.name for p in place.iterdir()] == [f"{LARGE}.part"]
    assert download.fetch("mnist", place, mirror.url)
    assert whole(place)


def test_the_command_fetches_and_says_what_comes_next(mirror, place, lustral, capsys):
    assert lustral("data", "mnist", "--from", mirror.url) == 0
    said = capsys.readouterr().out
    assert f"→ {place}" in said
    assert "12 training images (1 of them for validation), 3 test images, 1×40×40, 10 classes" in said
    assert "next: lustral train classifier mnist.safetensors --data mnist" in said
    assert lustral("data", "mnist", f"--from={mirror.url}") == 0
    assert "mnist is there already" in capsys.readouterr().out
    assert lustral("data", "mnist", "--folder", "my own", "--from", mirror.url) == 0
    assert "--data 'my own'" in capsys.readouterr().out


def test_the_command_offline_is_one_sentence(mirror, place, lustral, capsys):
    assert lustral("data", "mnist") == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("lustral: Cannot reach http://127.0.0.1:1/nobody/")
    assert "--from" in sentence


def test_digits_need_no_fetching(lustral, capsys):
    assert lustral("data", "digits") == 0
    assert "1,200 training images (200 of them for validation), 597 test images" in capsys.readouterr().out
