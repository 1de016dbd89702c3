"""``lustral purify``: files and folders in and out."""

from pathlib import Path

import numpy as np
from PIL import Image

from digits import digits
from lustral.core import kernel
from lustral.core.lanes import Lanes
from lustral.core.noise import Key
from lustral.purifiers.presets import diffpure
from lustral.shell import commands, weights
from mistakes import weights_file

SMALL = ["--purification.steps=2", "--seed=3"]


def digits_as_pictures(folder: Path) -> None:
    """A folder of all formats, with folders inside."""
    (folder / "deep" / "er").mkdir(parents=True)
    x = digits(4).x
    Image.fromarray((255 * x[0, 0]).byte().numpy()).save(folder / "a.png")
    Image.fromarray((255 * x[1, 0]).byte().numpy()).resize((24, 16)).save(folder / "deep" / "b.JPG", "JPEG")
    np.save(folder / "deep" / "c.npy", (255 * x[:, 0]).byte().numpy())
    np.savez(folder / "deep" / "er" / "d.npz", x=x.numpy().astype(np.float64), y=np.arange(4), note=np.array("kept"))
    (folder / "read.me").write_text("not an image")


def test_purify_keeps_structure_formats_and_types(lustral, tmp_path):
    digits_as_pictures(Path("in"))
    assert lustral("purify", "in", "out", *SMALL) == 0
    names = ["a.png", "deep/b.JPG", "deep/c.npy", "deep/er/d.npz"]
    assert sorted(str(p.relative_to("out")) for p in Path("out").rglob("*") if p.is_file()) == names
    with Image.open("out/a.png") as a, Image.open("out/deep/b.JPG") as b:
        assert (a.format, a.mode, a.size) == ("PNG", "L", (8, 8))
        assert (b.format, b.mode, b.size) == ("JPEG", "L", (24, 16))
    c, d = np.load("out/deep/c.npy"), np.load("out/deep/er/d.npz")
    assert (c.dtype, c.shape) == (np.uint8, (4, 8, 8))
    assert (d["x"].dtype, d["x"].shape) == (np.float64, (4, 1, 8, 8))
    assert d["y"].tolist() == [0, 1, 2, 3]
    assert str(d["note"]) == "kept"
    assert 0 < np.abs(d["x"] - np.load("in/deep/er/d.npz")["x"]).mean() < 0.3


def test_the_same_seed_purifies_the_same_in_any_batch(lustral, tmp_path, tree):
    digits_as_pictures(Path("in"))
    for out, *options in (("one", "--batch=1"), ("two", "--batch=64")):
        assert lustral("purify", "in", out, *SMALL, *options) == 0
    one, two = (np.load(f"{out}/deep/er/d.npz")["x"] for out in ("one", "two"))
    assert np.allclose(one, two, atol=1e-4)
    assert lustral("purify", "in", "again", *SMALL, "--batch=64") == 0
    assert tree(Path("again")) == tree(Path("two"))


def test_equal_images_meet_different_noise(lustral):
    """Ids count on from file to file: two copies in a folder are purified as two images in one file are."""
    twice = digits(1).x.repeat(2, 1, 1, 1).numpy()
    Path("in").mkdir()
    for name, x in (("in/a.npy", twice[:1]), ("in/b.npy", twice[1:]), ("both.npy", twice)):
        np.save(name, x)
    assert lustral("purify", "in", "out", *SMALL) == 0
    assert lustral("purify", "both.npy", "together.npy", *SMALL) == 0
    a, b, both = (np.load(name) for name in ("out/a.npy", "out/b.npy", "together.npy"))
    assert np.allclose(np.concatenate([a, b]), both, atol=1e-4)
    assert not np.allclose(a, b, atol=1e-2)


def test_small_files_are_purified_together(lustral, monkeypatch):
    """As many as make a batch, where their images are of one size; in order, and each to its own output."""
    x = digits(5).x.numpy()
    Path("in").mkdir()
    for i, part in enumerate((x[:1], x[1:2], x[2:4], np.pad(x[4:], ((0, 0), (0, 0), (0, 8), (0, 0))), x[:1])):
        np.save(f"in/{i}.npy", part)
    sizes = []

    class Noting(Lanes):
        def __call__(self, purifier, x, rng):
            sizes.append(len(x))
            return super().__call__(purifier, x, rng)

    monkeypatch.setattr(commands, "Lanes", Noting)
    assert lustral("purify", "in", "out", *SMALL, "--batch=3") == 0
    assert sizes == [2, 2, 1, 1]
    expected = kernel.purify(
        diffpure(weights.load("digits-unet", "denoiser")[0], 0.1, "ddpm", steps=2), digits(4).x, Key(3).rng(4)
    )
    out = np.concatenate([np.load(f"out/{i}.npy") for i in range(3)])
    assert np.allclose(out, expected.clamp(0, 1).numpy(), atol=1e-4)


def test_without_a_seed_nobody_can_replay(lustral):
    np.save("in.npy", digits(2).x.numpy())
    for out in ("one.npy", "two.npy"):
        assert lustral("purify", "in.npy", out, "--purification.steps=2") == 0
    assert not np.allclose(np.load("one.npy"), np.load("two.npy"), atol=1e-3)


def test_purify_is_the_librarys_purification_with_positions_as_ids(lustral):
    x = digits(5).x
    np.save("in.npy", x.numpy())
    assert lustral("purify", "in.npy", "out.npy", *SMALL, "--batch=2") == 0
    denoiser = weights.load("digits-unet", "denoiser")[0]
    expected = kernel.purify(diffpure(denoiser, 0.1, "ddpm", steps=2), x, Key(3).rng(5))
    assert np.allclose(np.load("out.npy"), expected.clamp(0, 1).numpy(), atol=1e-4)


def test_a_picture_goes_into_a_folder_under_its_name(lustral):
    digits_as_pictures(Path("in"))
    Path("out").mkdir()
    assert lustral("purify", "in/a.png", "out", "--purification.method=adp", "--purification.steps=2") == 0
    assert [p.name for p in Path("out").iterdir()] == ["a.png"]


def test_a_colour_picture_is_not_made_grey(lustral, capfd):
    colour = np.zeros((8, 8, 3), dtype=np.uint8)
    Image.fromarray(colour).save("grey.png")  # in fact, though it has three channels
    assert lustral("purify", "grey.png", "out.png", *SMALL) == 0
    colour[..., 0] = 200
    Image.fromarray(colour).save("colour.png")
    assert lustral("purify", "colour.png", "out2.png", *SMALL, "--purification.denoiser=digits-unet") == 2
    assert "is in colour, and this denoiser cleans grey pictures" in capfd.readouterr().err
    assert not Path("out2.png").exists()


def test_one_picture_that_cannot_be_read_does_not_stop_the_rest(lustral, capfd):
    x = (255 * digits(3).x[:, 0]).byte().numpy()
    Path("in").mkdir()
    for name, image in zip(("a.png", "c.png", "e.tif"), x, strict=True):
        Image.fromarray(image).save(f"in/{name}")
    Path("in/b.png").write_bytes(b"hello")
    Path("in/d.png").write_bytes(Path("in/c.png").read_bytes()[:60])
    Path("in/._a.png").write_bytes(b"hidden")
    assert lustral("purify", "in", "out", *SMALL) == 2
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "c.png", "e.tif"]
    said = capfd.readouterr().err
    assert "2 of 5 files were not cleaned, the others are written: in/b.png is damaged or no picture" in said
    assert "; in/d.png is damaged (" in said


def test_what_is_transparent_is_said_once(lustral, capfd):
    Path("in").mkdir()
    for name in ("in/a.png", "in/b.png"):
        Image.new("LA", (8, 8), (0, 0)).save(name)
    assert lustral("purify", "in", "out", *SMALL) == 0
    assert capfd.readouterr().err.count("What is transparent in 2 of 2 pictures was laid on white.") == 1
    with Image.open("out/a.png") as picture:
        assert np.asarray(picture).mean() > 200


def test_pictures_of_any_size_are_cleaned_and_those_far_from_training_are_said_once(lustral, capfd):
    x = (255 * digits(1).x[0, 0]).byte().numpy()
    Path("in").mkdir()
    for i, (h, w) in enumerate([(7, 7), (10, 9), (1, 1), (19, 33), (40, 8)]):
        Image.fromarray(np.resize(np.kron(x, np.ones((5, 5), np.uint8)), (h, w))).save(f"in/{i}.png")
    assert lustral("purify", "in", "out", *SMALL) == 0
    shapes = []
    for path in sorted(Path("out").iterdir()):
        with Image.open(path) as picture:
            shapes.append(picture.size)
    assert shapes == [(7, 7), (9, 10), (1, 1), (33, 19), (8, 40)]
    said = capfd.readouterr().err
    assert said.count("is far from that") == 1
    assert "digits-unet was trained on images of 8×8, and 1×1 is far from that" in said


def test_evaluate_and_attack_say_it_too_where_a_denoiser_is_far_from_its_size(lustral, capfd):
    weights_file(lambda facts: facts | {"name": "large", "image": [1, 16, 16]})
    how = ["--purification.denoiser=own.safetensors", "--purification.steps=1", "--images=2"]
    for command in (["evaluate", "run", "--stages=[clean]", "--draws=1"], ["attack", "out.npz", "--stage=clean"]):
        assert lustral(*command, *how) == 0
        assert capfd.readouterr().err.count("large was trained on images of 16×16, and 8×8 is far from that") == 1
