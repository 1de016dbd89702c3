from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lustral.core.errors import UserError
from lustral.shell.images import pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def there_and_back(path: Path, channels: int) -> Path:
    """Reads and writes a file without changing an image."""
    source = pictures.read(path, channels)
    out = path.with_stem("out")
    pictures.write(source, source.x, out)
    return out


@pytest.mark.parametrize(("array", "channels"), [(PIXELS, 1), (COLOUR, 3)], ids=["grey", "colour"])
def test_png_is_read_and_written_to_the_bit(tmp_path, array, channels):
    Image.fromarray(array).save(tmp_path / "a.png")
    source = pictures.read(tmp_path / "a.png", channels)
    assert source.x.shape == (1, channels, 6, 8)
    assert np.array_equal((255 * source.x[0]).round().numpy().astype(np.uint8), np.atleast_3d(array).transpose(2, 0, 1))
    with Image.open(there_and_back(tmp_path / "a.png", channels)) as out:
        assert np.array_equal(np.asarray(out), array)


@pytest.mark.parametrize("suffix", ["bmp", "webp", "tif", "TIFF", "gif", "ppm", "pgm", "pnm"])
def test_formats_without_loss_lose_nothing(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal((255 * pictures.read(path, 1).x[0, 0]).round().numpy(), PIXELS)
    out = there_and_back(path, 1)
    with Image.open(path) as before, Image.open(out) as after:
        assert before.format == after.format
    assert torch.equal(pictures.read(out, 1).x, pictures.read(path, 1).x)


ONE = {"3hw": COLOUR.transpose(2, 0, 1), "hw3": COLOUR, "hw4": np.dstack([COLOUR, np.full((6, 8), 255, np.uint8)])}


@pytest.mark.parametrize("scale", [1, 255], ids=["8 bits", "floats"])
@pytest.mark.parametrize("array", ONE.values(), ids=ONE)
def test_one_image_in_colour_is_one(tmp_path, array, scale):
    array = array if scale == 1 else (array / 255).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    x = pictures.read(tmp_path / "a.npy", 3).x
    assert np.allclose(255 * x[0].numpy(), COLOUR.transpose(2, 0, 1), atol=1e-3)
    out = np.load(there_and_back(tmp_path / "a.npy", 3))
    assert out.dtype == array.dtype
    assert np.allclose(out, array, atol=1e-6)
    with pytest.raises(UserError, match=r"may be one image in colour or \d grey ones; save .* \[n, 1, h, w\]"):
        pictures.read(tmp_path / "a.npy", 1)


def test_an_array_that_is_transparent_is_on_white(tmp_path):
    """A quarter of black is three quarters of white."""
    for whole in (np.uint8(255), np.float32(1)):
        array = np.zeros((2, 5, 4), whole.dtype)
        array[..., 3] = whole / 4
        np.save(tmp_path / "a.npy", array)
        found = pictures.read(tmp_path / "a.npy", 3)
        assert found.transparent
        assert torch.allclose(found.x, torch.full((1, 3, 2, 5), 192 / 255 if whole == 255 else 0.75))
        assert (np.load(there_and_back(tmp_path / "a.npy", 3))[..., 3] == whole).all()


def test_jpeg_stays_close(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8), (32, 32))
    Image.fromarray(np.ascontiguousarray(smooth)).save(tmp_path / "a.jpeg", quality=95)
    with Image.open(there_and_back(tmp_path / "a.jpeg", 1)) as out:
        assert out.format == "JPEG"
        assert np.abs(np.asarray(out).astype(int) - smooth).max() < 12


def test_pictures_come_in_the_channels_that_the_network_wants(tmp_path):
    Image.fromarray(PIXELS).convert("RGB").save(tmp_path / "a.png")
    Image.fromarray(PIXELS).save(tmp_path / "b.png")
    assert torch.equal(pictures.read(tmp_path / "a.png", 1).x[0, 0], torch.tensor(PIXELS / 255).float())
    assert torch.equal(pictures.read(tmp_path / "b.png", 3).x[0], torch.tensor(PIXELS / 255).float().expand(3, 6, 8))


@pytest.mark.parametrize("mode", ["1", "P"])
def test_palettes_and_bitmaps_are_read_as_what_they_show(tmp_path, mode):
    Image.fromarray(np.where(PIXELS > 127, 255, 0).astype(np.uint8)).convert(mode).save(tmp_path / "a.png")
    assert torch.equal(pictures.read(tmp_path / "a.png", 1).x[0, 0], torch.tensor(PIXELS > 127).float())


def test_more_than_8_bits_are_refused_instead_of_cut_off(tmp_path):
    Image.fromarray(PIXELS.astype(np.uint16) * 257).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        pictures.read(tmp_path / "a.png", 1)


LAYOUTS = {"nhw": (4, 6, 8), "n1hw": (4, 1, 6, 8), "nhw1": (4, 6, 8, 1), "n3hw": (4, 3, 6, 8), "nhw3": (4, 6, 8, 3)}


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_arrays_keep_layout_type_and_values(tmp_path, suffix, shape, dtype):
    array = np.random.default_rng(2).integers(0, 256, shape)
    array = array.astype(np.uint8) if dtype == np.uint8 else (array / 255).astype(dtype)
    path = tmp_path / f"a{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, x=array, y=np.arange(4), names=np.array(["a", "b"]))
    out = np.load(there_and_back(path, 3 if 3 in shape else 1))
    found = out if suffix == ".npy" else out["x"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.allclose(found.astype(float), array.astype(float), atol=1e-7)
    if suffix == ".npz":
        assert out["y"].tolist() == [0, 1, 2, 3]
        assert out["names"].tolist() == ["a", "b"]


def test_what_leaves_the_range_is_cut_off(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    source = pictures.read(tmp_path / "a.png", 1)
    pictures.write(source, torch.where(source.x > 0.5, 1.7, -0.3), tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.where(PIXELS > 127, 255, 0))


@pytest.mark.parametrize("name", ["a.png", "a.npy"])
def test_8_bit_pixels_are_rounded_to_the_nearest(tmp_path, name):
    Image.fromarray(PIXELS).save(tmp_path / name) if name == "a.png" else np.save(tmp_path / name, PIXELS[None])
    source = pictures.read(tmp_path / name, 1)
    pictures.write(source, torch.full_like(source.x, 99.6 / 255), tmp_path / name)
    assert torch.equal(pictures.read(tmp_path / name, 1).x, torch.full_like(source.x, 100 / 255))


def test_a_folder_goes_to_a_folder_of_the_same_shape_in_order(tmp_path):
    for name in ("b/c.png", "a.NPY", "b/a.jpg", "b/readme.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    found = list(pictures.pairs(tmp_path / "in", tmp_path / "out"))
    assert [str(a.relative_to(tmp_path)) for a, _ in found] == ["in/a.NPY", "in/b/a.jpg", "in/b/c.png"]
    assert [str(b.relative_to(tmp_path)) for _, b in found] == ["out/a.NPY", "out/b/a.jpg", "out/b/c.png"]


def test_what_would_be_passed_over_is_named_and_what_hides_is_no_image(tmp_path):
    for name in ("a.png", "b/c.tif", "._a.png", ".a.0abc.png", ".git/x", "b/Thumbs.db", "README", "d.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"d.heic: no image that Lustral reads; it takes PNG, .* and npz files"):
        list(pictures.pairs(tmp_path, tmp_path / "out"))
    (tmp_path / "d.heic").unlink()
    found = [source.relative_to(tmp_path).as_posix() for source, _ in pictures.pairs(tmp_path, tmp_path / "out")]
    assert found == ["a.png", "b/c.tif"]


def test_no_output_takes_the_place_of_its_input(tmp_path):
    image = tmp_path / "in" / "a.png"
    image.parent.mkdir()
    image.touch()
    for source, target in ((image, image), (image, image.parent), (image.parent, image.parent)):
        with pytest.raises(UserError, match="write over"):
            list(pictures.pairs(source, target))
    assert list(pictures.pairs(image.parent, tmp_path)) == [(image, tmp_path / "a.png")]


def test_outputs_within_the_folder_are_no_inputs(tmp_path):
    for name in ("a.png", "clean/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(pictures.pairs(tmp_path, tmp_path / "clean")) == [(tmp_path / "a.png", tmp_path / "clean" / "a.png")]


def test_archives_are_told_by_what_they_are_in_any_case_of_the_suffix(tmp_path):
    with open(tmp_path / "a.NPZ", "wb") as f:
        np.savez(f, x=PIXELS[None], y=np.arange(1))
    assert pictures.read(tmp_path / "a.NPZ", 1).x.shape == (1, 1, 6, 8)
    out = there_and_back(tmp_path / "a.NPZ", 1)
    assert np.array_equal(np.load(out)["x"], PIXELS[None])


def test_a_picture_is_read_as_it_is_shown(tmp_path):
    """Cameras turn pictures by a tag (here: a quarter to the right), which pictures of ours do not have."""
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=tag)
    turned = np.rot90(COLOUR, -1)
    source = pictures.read(tmp_path / "a.png", 3)
    assert np.array_equal((255 * source.x[0]).round().numpy().astype(np.uint8), turned.transpose(2, 0, 1))
    with Image.open(there_and_back(tmp_path / "a.png", 3)) as out:
        assert np.array_equal(np.asarray(out), turned)
        assert 0x0112 not in out.getexif()
