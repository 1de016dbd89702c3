"""Folders of pictures: nothing vanishes, nothing shifts, and every picture is what it shows."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lustral.core.errors import UserError
from lustral.shell.images import data, imagefolder

GREY = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # a quarter to the right


def put(path: Path, array: np.ndarray = GREY, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def read(root: Path) -> data.Data:
    return data.load_bytes(str(root))


LOSSLESS = ("png", "BMP", "tif", "tiff", "gif", "ppm", "pgm", "pnm")


def test_pictures_of_all_formats_are_read_each_in_its_class(tmp_path):
    for i, suffix in enumerate(LOSSLESS):
        put(tmp_path / f"{i}" / f"ä.{suffix}", GREY + i)
    put(tmp_path / "8" / "a.webp", GREY, lossless=True)
    found = read(tmp_path)
    assert found.x.shape == (9, 1, 6, 8)
    for pixels, label in zip(found.x, found.y.tolist(), strict=True):
        assert np.array_equal(pixels[0].numpy(), GREY + label % 8)
    for suffix in ("jpg", "jfif"):
        put(tmp_path / "9" / f"a.{suffix}", np.full((6, 8), 77, np.uint8))
    assert (read(tmp_path).x.flatten(1).float().mean(1) == 77).sum() == 2


def test_classes_are_those_of_all_folders_in_the_order_that_people_count_in(tmp_path, capfd):
    for name in ("0", "1", "2", "10", "11"):
        put(tmp_path / name / f"{name}.png", np.full((4, 4), int(name), np.uint8))
    (tmp_path / "5").mkdir()
    (tmp_path / ".cache").mkdir()
    parts = data.parts(str(tmp_path))
    assert parts.classes == ("0", "1", "2", "5", "10", "11")
    found = parts.pick("test", "")
    labels = {int(x): int(y) for x, y in zip(found.x[:, 0, 0, 0], found.y, strict=True)}
    assert labels == {0: 0, 1: 1, 2: 2, 10: 4, 11: 5}
    assert "Class folders without pictures keep their numbers: 5 (3)." in capfd.readouterr().err


def test_only_numbers_are_ordered_otherwise_than_text():
    names = ["Zoo", "a-b", "a1", "a10", "a2", "ab", "n01440764", "n01443537"]
    assert sorted(names, key=imagefolder.natural) == ["Zoo", "a-b", "a1", "a2", "a10", "ab", "n01440764", "n01443537"]


def test_ids_stay_positions_in_the_paths_as_text(tmp_path):
    for name in ("2", "10"):
        put(tmp_path / name / "a.png", np.full((4, 4), int(name), np.uint8))
    found = read(tmp_path)
    assert {int(x): int(i) for x, i in zip(found.x[:, 0, 0, 0], found.ids, strict=True)} == {10: 0, 2: 1}


@pytest.mark.parametrize("name", ["b.heic", "b", "b.npy"])
def test_what_cannot_be_read_is_named_and_not_missed(tmp_path, name):
    put(tmp_path / "cat" / "a.png")
    for aside in ("Thumbs.db", ".DS_Store", "._a.png", "README", "labels.csv"):
        (tmp_path / "cat" / aside).write_bytes(b"x")
    assert len(read(tmp_path).y) == 1
    (tmp_path / "cat" / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"cat/{name} cannot be read among the pictures .* take them out"):
        read(tmp_path)


def test_pictures_in_no_class_are_named(tmp_path):
    put(tmp_path / "train" / "cat" / "a.png")
    put(tmp_path / "train" / "b.png")
    with pytest.raises(UserError, match=r"train/b.png: pictures in no class folder"):
        read(tmp_path)


def test_links_to_folders_are_followed_but_in_no_circle(tmp_path):
    put(tmp_path / "elsewhere" / "in" / "a.png")
    put(tmp_path / "set" / "dog" / "a.png")
    (tmp_path / "set" / "cat").mkdir()
    (tmp_path / "set" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "dog" / "round").symlink_to(tmp_path / "set")
    assert sorted(read(tmp_path / "set").y.tolist()) == [0, 1]


def test_folders_of_splits_are_known_in_any_case(tmp_path):
    put(tmp_path / "Train" / "cat" / "a.png")
    put(tmp_path / "TEST" / "cat" / "b.png", GREY + 1)
    assert np.array_equal(read(tmp_path).x[:, 0].numpy(), [GREY + 1])
    assert data.parts(str(tmp_path)).classes == ("cat",)


def test_classes_of_other_names_in_tests_are_refused_and_more_of_them_are_not(tmp_path):
    put(tmp_path / "train" / "good" / "a.png")
    put(tmp_path / "test" / "good" / "b.png")
    put(tmp_path / "test" / "crack" / "c.png")
    assert data.parts(str(tmp_path)).classes == ("crack", "good")
    assert sorted(data.load(str(tmp_path), "test").y.tolist()) == [0, 1]
    assert data.load(str(tmp_path), "train").y.tolist() == [1]
    put(tmp_path / "train" / "cracks" / "b.png")
    with pytest.raises(UserError, match="Train has the classes cracks, where test has crack; name the class folders"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_pictures_are_turned_as_their_tag_says(tmp_path, suffix):
    smooth = np.linspace(0, 255, 8).astype(np.uint8).repeat(18).reshape(8, 6, 3).transpose(1, 0, 2)
    options = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    put(tmp_path / "a" / f"a.{suffix}", np.ascontiguousarray(smooth), exif=TURNED, **options)
    put(tmp_path / "a" / "b.png", np.rot90(smooth, -1))
    found = read(tmp_path)
    assert found.x.shape == (2, 3, 8, 6)
    assert (found.x[0].int() - found.x[1].int()).abs().max() < (12 if suffix == "jpg" else 1)


def transparent(path: Path, kind: str) -> None:
    """A red (or black) picture whose left half shows what is behind it."""
    alpha = np.full((4, 4), 255, np.uint8)
    alpha[:, :2] = 0
    red = Image.new("RGBA", (4, 4), "red" if kind != "LA" else "black")
    red.putalpha(Image.fromarray(alpha))
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind in ("P", "RGB"):  # one colour of the palette, or one colour, is said to be transparent
        picture = Image.new("RGB", (4, 4), "red")
        picture.paste((9, 0, 0), (0, 0, 2, 4))
        picture = picture.quantize(4) if kind == "P" else picture
        picture.save(path, transparency=picture.getpixel((0, 0)))
    else:
        red.convert(kind).save(path)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white_and_said(tmp_path, kind, capfd):
    transparent(tmp_path / "a" / "a.png", kind)
    x = read(tmp_path).x[0]
    assert (x[:, :, :2] == 255).all()
    assert x[:, 0, 3].tolist() == ([0] if kind == "LA" else [255, 0, 0])
    assert "What is transparent in 1 of 1 pictures was laid on white." in capfd.readouterr().err


def test_opaque_pictures_with_alpha_are_not_spoken_of(tmp_path, capfd):
    put(tmp_path / "a" / "a.png", np.dstack([COLOUR, np.full((6, 8), 255, np.uint8)]))
    assert np.array_equal(read(tmp_path).x[0].numpy(), COLOUR.transpose(2, 0, 1))
    assert capfd.readouterr().err == ""


def png(path: Path, *chunks: tuple[bytes, bytes]) -> None:
    """A PNG of these chunks."""
    parts = (struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def header(w: int, h: int, bits: int = 8, kind: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", w, h, bits, kind, 0, 0, 0)


WRONG = {
    "16 bits of colour": (
        lambda path: png(path, header(2, 2, 16), (b"IDAT", zlib.compress(bytes(26))), (b"IEND", b"")),
        "more than 8 bits a channel",
    ),
    "a bomb": (lambda path: png(path, header(30_000, 30_000), (b"IDAT", b"")), "says that it has more than .* pixels"),
    "a large bomb": (lambda path: png(path, header(10_000, 10_000), (b"IDAT", b"")), "more than .* pixels"),
    "a bad chunk": (lambda path: png(path, header(8, 6), (b"IDAT", b"not zlib"), (b"IEND", b"")), "is damaged"),
    "PostScript": (
        lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n"),
        "is damaged or no picture",
    ),
    "a film": (
        lambda path: Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(GREY + 9)]),
        "holds several pictures",
    ),
    "Lab": (lambda path: Image.new("LAB", (8, 6)).save(path, "TIFF"), "is damaged or no picture of the format"),
    "several pages": (
        lambda path: Image.fromarray(GREY).save(
            path, "TIFF", save_all=True, append_images=[Image.fromarray(GREY), Image.fromarray(GREY)]
        ),
        "is damaged or no picture of the format",
    ),
}


@pytest.mark.parametrize(("make", "words"), WRONG.values(), ids=WRONG)
def test_pictures_that_are_none_are_one_sentence(tmp_path, make, words):
    (tmp_path / "a").mkdir()
    make(tmp_path / "a" / "a.png")
    with pytest.raises(UserError, match=f"a.png.* {words}|a.png {words}"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animations_are_refused(tmp_path, name):
    put(tmp_path / "a" / name, GREY, save_all=True, append_images=[Image.fromarray(GREY + 9)])
    with pytest.raises(UserError, match=rf"{name} holds several pictures; save them one by one"):
        read(tmp_path)


def test_pictures_for_print_are_read(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(tmp_path / "a" / "a.tif")
    assert read(tmp_path).x[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_cameras_jpeg_with_previews_is_its_first_picture(tmp_path):
    (tmp_path / "a").mkdir()
    preview = Image.new("L", (3, 3), 9)
    Image.new("L", (8, 6), 200).save(tmp_path / "a" / "a.jpg", "MPO", save_all=True, append_images=[preview])
    assert read(tmp_path).x.unique().tolist() == [200]
