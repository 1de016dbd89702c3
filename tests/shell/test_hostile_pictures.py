"""Pictures that are something else, or more than they seem: refused in a sentence before they cost anything."""

import io
import os
import resource
import socket
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lustral.core.errors import UserError
from lustral.shell.images import data, decode
from mistakes import TRAIN, check, picture

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
PURIFY = ["purify", "in.png", "out.png", "--purification.steps=1"]


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG of that size, by its header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def other_format(kind: str) -> bytes:
    place = Path(f"other.{kind}")
    Image.new("RGB", (8, 8)).save(place, kind)
    return place.read_bytes()


@pytest.fixture
def no_programs(monkeypatch) -> None:
    """Whoever starts a program fails the test, also where Pillow would say that it is not installed."""

    def start(*args, **kwargs):
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")


@pytest.mark.parametrize("kind", ["eps", "dds", "sgi", "icns", "pcx"])
def test_a_picture_named_png_reaches_the_decoders_of_pictures_alone(kind, monkeypatch, tmp_path, no_programs):
    monkeypatch.chdir(tmp_path)
    Path("in.png").write_bytes(POSTSCRIPT if kind == "eps" else other_format(kind))
    with pytest.raises(UserError, match=r"in\.png is damaged or no picture"):
        decode.read(Path("in.png"), "RGB")


@pytest.mark.parametrize("name", ["in.png", "in.jpg", "in.gif"])
def test_only_what_is_common_under_the_suffix_of_another_is_read(name, tmp_path):
    """PNG, JPEG and WebP are; a TIFF under another name never meets its decoder."""
    grey = Image.fromarray(np.full((4, 4), 77, np.uint8))
    grey.save(tmp_path / name, "PNG")
    assert decode.read(tmp_path / name, "L").array.tolist() == [[77] * 4] * 4
    for other in ("TIFF", "BMP", "PPM"):
        grey.save(tmp_path / name, other)
        with pytest.raises(UserError, match="no picture of the format that its name says"):
            decode.read(tmp_path / name, "L")


def test_colours_and_pages_of_a_tiff_are_refused_under_its_own_name(tmp_path):
    Image.new("LAB", (8, 6)).save(tmp_path / "lab.tif")
    with pytest.raises(UserError, match="has its colours in LAB"):
        decode.read(tmp_path / "lab.tif", "RGB")
    page = Image.new("L", (8, 6))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page, page])
    with pytest.raises(UserError, match="holds several pictures"):
        decode.read(tmp_path / "pages.tif", "L")


def test_hugging_faces_pictures_reach_the_decoders_of_pictures_alone(monkeypatch, tmp_path, no_programs):
    library = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    features = library.Features({"image": library.Image(decode=False), "label": library.Value("int64")})
    rows = {"image": [{"bytes": POSTSCRIPT, "path": "a.png"}], "label": [0]}
    made = library.Dataset.from_dict(rows, features).cast_column("image", library.Image())
    (tmp_path / "set").mkdir()
    made.to_parquet(tmp_path / "set/test.parquet")
    with pytest.raises(UserError, match=r"A picture of .*set is damaged or no picture"):
        data.load(f"hf:{tmp_path / 'set'}")


@pytest.mark.parametrize("side", [8193, 9000, 13_000, 100_000])
def test_a_picture_that_claims_too_many_pixels_is_refused_by_its_header(side, monkeypatch, tmp_path):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels are decoded"))
    (tmp_path / "in.png").write_bytes(png(side, side))
    with pytest.raises(UserError, match="in.png says that it has more than 67,108,864 pixels; save it with fewer"):
        decode.read(tmp_path / "in.png", "RGB")


def pipe(name: str) -> None:
    os.mkfifo(name)


def link_to_a_pipe(name: str) -> None:
    os.mkfifo("pipe")
    Path(name).symlink_to("pipe")


def device(name: str) -> None:
    Path(name).symlink_to("/dev/zero")


def socket_file(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(name)


NO_FILES = [pipe, link_to_a_pipe, device, socket_file]
READERS = {
    "in.png": PURIFY,
    "in.npy": ["purify", "in.npy", "out.npy", "--purification.steps=1"],
    "in.npz": ["purify", "in.npz", "out.npz", "--purification.steps=1"],
    "data.npz": [*TRAIN, "--data=data.npz"],
    "own.safetensors": ["purify", "a.png", "out.png", "--purification.denoiser=own.safetensors"],
    "card.json": ["show", "card.safetensors"],
    "net.checkpoint": TRAIN,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("make", NO_FILES, ids=[make.__name__ for make in NO_FILES])
def test_what_is_no_file_is_refused_unread(make: Callable, name, lustral, tmp_path, tree, capfd, monkeypatch):
    def unread(path, *args, **kwargs):
        if str(path).endswith(name):
            pytest.fail(f"{name} was opened")
        return before(path, *args, **kwargs)

    before = open
    monkeypatch.setattr("builtins.open", unread)
    monkeypatch.setattr("io.open", unread)
    monkeypatch.setattr("PIL.Image.open", unread)
    picture("a.png")
    Path("card.safetensors").touch()
    make(name)
    check(READERS[name], [name, "is a pipe, a socket or a device; copy what it gives"], lustral, tmp_path, tree, capfd)


def test_one_pipe_in_a_folder_costs_the_others_nothing(lustral, tmp_path, capfd):
    Path("in").mkdir()
    picture("in/a.png")
    picture("in/c.png")
    os.mkfifo("in/b.png")
    assert lustral("purify", "in", "out", "--purification.steps=1") == 2
    assert "1 of 3 files were not cleaned, the others are written: in/b.png is a pipe" in capfd.readouterr().err
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "c.png"]


@pytest.mark.parametrize("name", ["in.png", "in.npy", "own.safetensors", "card.json"])
def test_a_link_that_leads_to_itself_is_named(name, lustral, tmp_path, tree, capfd):
    picture("a.png")
    Path("card.safetensors").touch()
    Path(name).symlink_to(name)
    check(READERS[name], [f"Cannot read {name}"], lustral, tmp_path, tree, capfd)


def npy_header(shape: tuple[int, ...]) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return content.getvalue()


def bomb() -> None:
    """Two GiB of zeros in two megabytes, written a part at a time."""
    archive = zipfile.ZipFile("in.npz", "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("x.npy", "w", force_zip64=True) as member:
        member.write(npy_header((2**31,)))
        for _ in range(2**31 // 2**24):
            member.write(bytes(2**24))


def many() -> None:
    with zipfile.ZipFile("in.npz", "w") as archive:
        for i in range(1_001):
            archive.writestr(f"{i}.npy", npy_header((0,)))


def promise() -> None:
    with zipfile.ZipFile("in.npz", "w") as archive:
        archive.writestr("x.npy", npy_header((2**40,)))


def no_array() -> None:
    with zipfile.ZipFile("in.npz", "w") as archive:
        archive.writestr("x.npy", b"hello")


ARCHIVES = {bomb: "far more than it is", many: "1,001 arrays", promise: "damaged", no_array: "damaged"}


@pytest.mark.parametrize(("make", "word"), ARCHIVES.items(), ids=[make.__name__ for make in ARCHIVES])
def test_an_archive_of_arrays_is_not_unpacked_to_more_than_it_can_hold(make, word, lustral, tmp_path, tree, capfd):
    make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(READERS["in.npz"], ["in.npz", word], lustral, tmp_path, tree, capfd)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19
