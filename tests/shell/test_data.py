import gzip
import hashlib
import io
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from lustral.core.errors import UserError
from lustral.shell import data, demo, unpickle

GREY = np.random.default_rng(0).random((5, 4, 6))


def saved(path, **arrays) -> data.Data:
    np.savez(path / "d.npz", **({"y": np.arange(5)} | arrays))
    return data.load(str(path / "d.npz"))


def test_digits_are_scikit_learns_in_their_order():
    raw = load_digits()
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train.ids), len(test.ids)) == (1200, 597)
    assert torch.equal(torch.cat([train.ids, test.ids]), torch.arange(1797))
    x, y = torch.cat([train.x, test.x]), torch.cat([train.y, test.y])
    assert x.shape == (1797, 1, 8, 8)
    assert x.dtype == torch.float32
    assert np.array_equal((16 * x[:, 0]).numpy(), raw.images)
    assert np.array_equal(y.numpy(), raw.target)


def test_the_demos_threat_cannot_turn_a_digit_into_another():
    """What the report says of it: the nearest two images of different digits are 7/16 apart, more than 2 eps."""
    train, test = data.load("digits", "train"), data.load("digits", "test")
    x, y = torch.cat([train.x, test.x]).flatten(1), torch.cat([train.y, test.y])
    pairs = zip(test.x.flatten(1), test.y, strict=True)
    nearest = min(float((row - x[y != label]).abs().amax(dim=1).min()) for row, label in pairs)
    assert nearest == 7 / 16 > 2 * demo.EPS
    assert "7/16" in demo.WHY_FAIR


@pytest.mark.parametrize(
    ("array", "channels"),
    [
        (GREY, 1),
        (GREY[:, None], 1),
        (GREY[..., None], 1),
        (np.stack([GREY] * 3, axis=1), 3),
        (np.stack([GREY] * 3, axis=3), 3),
    ],
    ids=["nhw", "n1hw", "nhw1", "n3hw", "nhw3"],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.uint8])
def test_layouts_and_types_are_understood(tmp_path, array, channels, dtype):
    scale = 255 if dtype == np.uint8 else 1
    found = saved(tmp_path, x=(scale * array).astype(dtype))
    assert found.x.shape == (5, channels, 4, 6)
    assert found.x.dtype == torch.float32
    expected = (scale * GREY).astype(dtype).astype(np.float32) / scale
    for channel in found.x.unbind(dim=1):
        assert np.allclose(channel.numpy(), expected, atol=1e-7)


def test_ids_are_positions_unless_they_are_given(tmp_path):
    assert saved(tmp_path, x=GREY).ids.tolist() == [0, 1, 2, 3, 4]
    assert saved(tmp_path, x=GREY, ids=np.array([9, 4, 7, 1, 3])).ids.tolist() == [9, 4, 7, 1, 3]


def test_labels_keep_their_images(tmp_path):
    found = saved(tmp_path, x=GREY, y=np.array([3, 1, 4, 1, 5], dtype=np.uint8))[torch.tensor([4, 0])]
    assert found.y.tolist() == [5, 3]
    assert found.y.dtype == torch.long
    assert found.ids.tolist() == [4, 0]
    assert np.allclose(found.x[:, 0].numpy(), GREY[[4, 0]], atol=1e-7)


def test_rounding_errors_at_the_edge_of_the_range_are_cut_off(tmp_path):
    found = saved(tmp_path, x=np.where(GREY > 0.5, 1 + 5e-7, -5e-7))
    assert float(found.x.min()) == 0
    assert float(found.x.max()) == 1


def test_unknown_splits_are_refused():
    with pytest.raises(UserError, match="Did you mean 'train'"):
        data.load("digits", "trian")


# Standard sets. Every format is written here byte by byte, from the same images.

N, TESTS = 30, 7
COLOUR = np.random.default_rng(1).integers(0, 256, (N + TESTS, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(N + TESTS) * 7 % 10


def batch(rows: slice, protocol: int = 2) -> bytes:
    """A batch of CIFAR-10's Python archive, as Python 3 pickles it."""
    return pickle.dumps(
        {b"data": COLOUR[rows].reshape(-1, 3072), b"labels": LABELS[rows].tolist(), b"batch_label": b"x"}, protocol
    )


def batch_of_python_2(rows: slice) -> bytes:
    """The same, opcode by opcode as in the published archive."""
    pixels = COLOUR[rows].tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([len(COLOUR[rows])]) + b"M\x00\x0c\x86"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<I", len(pixels)) + pixels + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in LABELS[rows]) + b"e"
    return b"\x80\x02}(U\x04data" + array + state + b"U\x06labels" + labels + b"u."


TRAIN_ROWS = [slice(i, i + N // 5) for i in range(0, N, N // 5)]
TEST_ROWS = slice(N, N + TESTS)


def python_files(write=batch, **options) -> dict[str, bytes]:
    train = {f"data_batch_{i}": write(rows, **options) for i, rows in enumerate(TRAIN_ROWS, 1)}
    return train | {"test_batch": write(TEST_ROWS, **options), "batches.meta": b"never read"}


def records(rows: slice, coarse: bool = False) -> bytes:
    labels = [LABELS[rows, None].astype(np.uint8)]
    labels = [labels[0] % 2, *labels] if coarse else labels
    return np.concatenate([*labels, COLOUR[rows].reshape(-1, 3072)], axis=1).tobytes()


def binary_files() -> dict[str, bytes]:
    train = {f"data_batch_{i}.bin": records(rows) for i, rows in enumerate(TRAIN_ROWS, 1)}
    return train | {"test_batch.bin": records(TEST_ROWS)}


def fine(rows: slice) -> bytes:
    found = {"data": COLOUR[rows].reshape(-1, 3072), "fine_labels": LABELS[rows].tolist(), "coarse_labels": [0]}
    return pickle.dumps(found, 4)


def idx_files() -> dict[str, bytes]:
    found = {}
    for stem, rows in (("train", slice(N)), ("t10k", TEST_ROWS)):
        images, labels = COLOUR[rows, 0], LABELS[rows].astype(np.uint8)
        found[f"{stem}-images-idx3-ubyte"] = struct.pack(">IIII", 2051, *images.shape) + images.tobytes()
        found[f"{stem}-labels-idx1-ubyte"] = struct.pack(">II", 2049, len(labels)) + labels.tobytes()
    return found


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def packed(path: Path, files: dict[str, bytes], prefix: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


PY, BIN = "cifar-10-batches-py", "cifar-10-batches-bin"
FORMATS = {
    "CIFAR-10, Python 2": lambda at: put(at / PY, python_files(batch_of_python_2)),
    "CIFAR-10, Python 3": lambda at: put(at / PY, python_files()),
    "CIFAR-10, pickled anew": lambda at: put(at / PY, python_files(protocol=5)),
    "CIFAR-10, from the folder above": lambda at: put(at / PY, python_files()).parent,
    "CIFAR-10, binary": lambda at: put(at / BIN, binary_files()),
    "CIFAR-10, archive": lambda at: packed(at / "cifar-10-python.tar.gz", python_files(), f"{PY}/"),
    "CIFAR-10, archive in a folder": lambda at: packed(at / "cifar-10-binary.tar.gz", binary_files(), f"{BIN}/").parent,
    "CIFAR-10, archive that climbs out": lambda at: packed(at / "c.tgz", python_files(), "/../../../"),
    "CIFAR-100, Python": lambda at: put(at / "a", {"train": fine(slice(N)), "test": fine(TEST_ROWS), "meta": b""}),
    "CIFAR-100, binary": lambda at: put(
        at / "a", {"train.bin": records(slice(N), True), "test.bin": records(TEST_ROWS, True)}
    ),
    "MNIST": lambda at: put(at / "a", idx_files()),
    "MNIST, zipped": lambda at: put(at / "a", zipped(idx_files())),
    "MNIST, spelt with dots": lambda at: put(
        at / "a", {name.replace("-idx", ".idx"): content for name, content in idx_files().items()}
    ),
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_published_formats_give_the_same_images_in_their_order(tmp_path, write):
    (tmp_path / "set").mkdir()
    place = str(write(tmp_path / "set"))
    train, test = data.load_bytes(place, "train"), data.load_bytes(place, "test")
    channels = train.x.shape[1]
    assert channels in (1, 3)
    assert train.x.dtype == torch.uint8
    assert np.array_equal(torch.cat([train.x, test.x]).numpy(), COLOUR[:, :channels])
    assert torch.cat([train.y, test.y]).tolist() == LABELS.tolist()
    assert torch.cat([train.ids, test.ids]).tolist() == list(range(N + TESTS))
    floats = data.load(place, "test").x
    assert np.array_equal(floats.numpy(), COLOUR[N:, :channels].astype(np.float32) / 255)
    assert not (tmp_path.parent / "test_batch").exists()


def test_sets_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("LUSTRAL_DATA", str(tmp_path))
    put(tmp_path / PY, python_files())
    put(
        tmp_path / "cifar100" / "cifar-100-binary",
        {"train.bin": records(slice(N), True), "test.bin": records(TEST_ROWS)},
    )
    put(tmp_path / "mnist", idx_files())
    put(tmp_path / "FashionMNIST" / "raw", zipped(idx_files()))
    for name in ("cifar10", "mnist", "fashion-mnist"):
        assert len(data.load(name, "train").ids) == N
    with pytest.raises(UserError, match="middle of an image"):
        data.load("cifar100")
    monkeypatch.setenv("LUSTRAL_DATA", str(tmp_path / "none"))
    with pytest.raises(UserError, match="mnist is not in .*none; fetch it with `lustral data mnist`"):
        data.load("mnist")


def test_the_data_folder_is_the_users_cache_unless_it_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("LUSTRAL_DATA", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.folder() == tmp_path / "lustral" / "data"


class Evil:
    """Unpickling this creates a folder."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def foreign_pickles() -> dict[str, bytes]:
    array = np.zeros(1, np.uint8)
    return {
        "a call": pickle.dumps({"data": Evil(), "labels": []}),
        "a call of old": b"cos\nmkdir\n(S'pwned'\ntR.",
        "a call by instance": b"(S'pwned'\nios\nmkdir\n.",
        "a name below numpy": b"cnumpy\nsave\n(S'pwned'\nI1\ntR.",
        "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "builtins": b"cbuiltins\neval\n(S'1'\ntR.",
        "objects": pickle.dumps({"data": np.array([Evil()], dtype=object)}),
        "another codec": pickle.dumps({"data": array}, 2).replace(b"latin1", b"rot_13"),
    }


@pytest.mark.parametrize("content", foreign_pickles().values(), ids=foreign_pickles().keys())
def test_pickles_cannot_call_anything(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    files = python_files() | {"data_batch_3": content}
    put(tmp_path / PY, files)
    with pytest.raises(UserError, match=f"{PY}/data_batch_3 is a pickle that asks for .* so it was not loaded"):
        data.load(PY, "test")
    assert [p.name for p in tmp_path.iterdir()] == [PY]
    packed(tmp_path / "c.tar.gz", files, "c/")
    with pytest.raises(UserError, match="is a pickle that asks for"):
        data.load("c.tar.gz", "test")
    assert not (tmp_path / "pwned").exists()


def test_the_malicious_pickle_would_work(tmp_path, monkeypatch):
    """Or its absence above would say nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(foreign_pickles()["a call"])
    assert (tmp_path / "pwned").exists()


def test_a_pickle_changes_nothing_of_ours(tmp_path):
    """BUILD sets attributes on whatever lies on the stack, so also on what find_class gave out."""
    before = dict(vars(unpickle._from_buffer))
    for name in ("numpy\nndarray", "numpy._core.numeric\n_frombuffer"):
        content = b"\x80\x02c" + name.encode() + b"\n}U\x01aK\x01sb0}."
        try:
            unpickle.read(content, "x")
        except UserError:
            continue
    assert vars(unpickle._from_buffer) == before
    assert not hasattr(unpickle._Array, "a")


def damaged() -> dict[str, tuple]:
    """What is written, and what the sentence says."""
    idx, python, binary = idx_files(), python_files(), binary_files()
    images, wide = "train-images-idx3-ubyte", pickle.dumps({"data": np.zeros((2, 9), np.uint8), "labels": [1, 2]})
    short = pickle.dumps({"data": COLOUR[:2].reshape(2, -1), "labels": [1]})
    beyond = pickle.dumps({"data": COLOUR[:2].reshape(2, -1), "labels": [1, 10]})
    text = pickle.dumps({"data": COLOUR[:1].reshape(1, -1), "labels": ["1"]})
    floats = pickle.dumps({"data": np.zeros((2, 3072)), "labels": [1, 2]})
    return {
        "a pickle cut": (python | {"test_batch": python["test_batch"][:99]}, "test_batch is damaged"),
        "a pickle of a list": (python | {"test_batch": pickle.dumps([1])}, "no batch of CIFAR images"),
        "a pickle of floats": (python | {"test_batch": floats}, "test_batch is damaged or no batch"),
        "images of another size": (python | {"test_batch": wide}, "holds no images of 3×32×32"),
        "too few labels": (python | {"test_batch": short}, "1 labels for 2 images"),
        "labels beyond the classes": (python | {"test_batch": beyond}, "labels 1 to 10 instead of 0 to 9"),
        "labels as text": (python | {"test_batch": text}, "no list of whole numbers as labels"),
        "a batch missing": ({k: v for k, v in python.items() if k != "data_batch_2"}, "lacks data_batch_2; fetch"),
        "a record cut": (binary | {"data_batch_2.bin": binary["data_batch_2.bin"][:-1]}, "middle of an image"),
        "no record": (binary | {"test_batch.bin": b""}, "holds 0 labels for 0 images"),
        "idx cut": (idx | {images: idx[images][:-1]}, f"{images} does not have the size that it claims"),
        "idx of another type": (idx | {images: b"\0\0\x0d\3" + idx[images][4:]}, f"{images} is no idx file of bytes"),
        "idx empty": (idx | {images: b""}, f"{images} is no idx file"),
        "gzip cut": (zipped(idx) | {f"{images}.gz": zipped(idx)[f"{images}.gz"][:-20]}, f"{images}.gz is damaged"),
        "no gzip": (zipped(idx) | {f"{images}.gz": b"hello"}, f"{images}.gz is damaged"),
        "a file of MNIST missing": ({k: v for k, v in idx.items() if k != images}, f"lacks {images}"),
        "nothing": ({}, "holds no set that Lustral reads"),
        "something else": ({"a.txt": b"x"}, "holds no set that Lustral reads"),
    }


@pytest.mark.parametrize(("files", "words"), damaged().values(), ids=damaged().keys())
def test_damaged_sets_are_one_sentence(tmp_path, files, words):
    place = put(tmp_path / "a", files)
    with pytest.raises(UserError, match=words) as e:
        data.load(str(place), "test")
    assert "\n" not in str(e.value)


def test_damaged_archives_are_one_sentence(tmp_path):
    path = packed(tmp_path / "c.tar.gz", python_files(), "c/")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="c.tar.gz is damaged or no tar archive"):
        data.load(str(path))
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="c.tar.gz is damaged or no tar archive"):
        data.load(str(path))
    packed(path, {"other": b""}, "c/")
    with pytest.raises(UserError, match="Unknown data"):
        data.load(str(path))


def test_an_archives_links_are_not_followed(tmp_path):
    path = tmp_path / "c.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(UserError, match="Unknown data"):
        data.load(str(path))


def test_a_folder_of_several_sets_is_not_guessed(tmp_path):
    put(tmp_path / PY, python_files())
    put(tmp_path / "cifar-100-binary", {"train.bin": b"", "test.bin": b""})
    with pytest.raises(UserError, match=r"several sets \(cifar10, cifar100\); name the folder"):
        data.load(str(tmp_path))


def check_splits(name: str) -> data.Data:
    """Fit and validation share no image and make up train; returns validation."""
    train, fit, validation = (data.load(name, split) for split in ("train", "fit", "validation"))
    assert sorted([*fit.ids.tolist(), *validation.ids.tolist()]) == sorted(train.ids.tolist())
    pixels = [{image.numpy().tobytes() for image in part.x} for part in (fit, validation)]
    assert not pixels[0] & pixels[1]
    place = {int(i): row for row, i in enumerate(train.ids)}
    for part in (fit, validation):
        rows = [place[int(i)] for i in part.ids]
        assert torch.equal(part.x, train.x[rows])
        assert torch.equal(part.y, train.y[rows])
    return validation


def test_the_digits_validation_images_are_the_last_200_of_training():
    assert check_splits("digits").ids.tolist() == list(range(1000, 1200))


def test_published_sets_validate_on_their_last_tenth(tmp_path):
    place = put(tmp_path / "a", idx_files())
    assert check_splits(str(place)).ids.tolist() == [27, 28, 29]


def test_copies_of_validation_images_leave_the_fit(tmp_path):
    files = idx_files()
    images = bytearray(files["train-images-idx3-ubyte"])
    images[16 + 5 * 1024 : 16 + 6 * 1024] = images[16 + 28 * 1024 : 16 + 29 * 1024]
    place = put(tmp_path / "a", files | {"train-images-idx3-ubyte": bytes(images)})
    assert check_splits(str(place)).ids.tolist() == [5, 27, 28, 29]


def test_other_sets_validate_on_the_tenth_of_smallest_hash(tmp_path):
    x = np.random.default_rng(2).random((50, 4, 4))
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(50) // 25)
    found = check_splits(str(tmp_path / "d.npz"))
    assert sorted(range(50), key=lambda i: hashlib.sha256(str(i).encode()).hexdigest())[:5] == sorted(
        found.ids.tolist(), key=lambda i: hashlib.sha256(str(i).encode()).hexdigest()
    )
    assert len(data.load(str(tmp_path / "d.npz"), "test").ids) == 50


def test_a_set_of_one_image_cannot_be_split(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 4, 4)), y=np.arange(3))
    with pytest.raises(UserError, match="too few different training images"):
        data.load(str(tmp_path / "d.npz"), "fit")


def test_npz_files_may_hold_both_splits(tmp_path):
    path = tmp_path / "d.npz"
    x = (255 * GREY).astype(np.uint8)
    np.savez(path, x_train=x, y_train=np.arange(5), x_test=x[:2], y_test=np.arange(2))
    assert data.load(str(path), "train").ids.tolist() == [0, 1, 2, 3, 4]
    test = data.load_bytes(str(path), "test")
    assert test.ids.tolist() == [5, 6]
    assert np.array_equal(test.x[:, 0].numpy(), x[:2])
    np.savez(path, x_train=x, y_train=np.arange(5))
    with pytest.raises(UserError, match="has no test images; it has train"):
        data.load(str(path), "test")
    np.savez(path, x_train=x, y_train=np.arange(4))
    with pytest.raises(UserError, match="y_train must be 5 whole numbers"):
        data.load(str(path), "train")


def test_floats_stay_floats_and_bytes_stay_bytes(tmp_path):
    assert data.load_bytes("digits").x.dtype == torch.float32
    np.savez(tmp_path / "d.npz", x=(255 * GREY).astype(np.uint8), y=np.arange(5))
    found = data.load_bytes(str(tmp_path / "d.npz"))
    assert found.x.dtype == torch.uint8
    assert torch.equal(data.as_floats(found.x), data.load(str(tmp_path / "d.npz")).x)
    every = torch.arange(256, dtype=torch.uint8)
    assert np.array_equal(data.as_floats(every).numpy(), np.arange(256, dtype=np.float32) / 255)


def picture(path: Path, value: int, mode: str = "L", size: tuple[int, int] = (5, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 9, 255)[: len(mode)]).save(path)


def test_folders_of_class_folders(tmp_path):
    picture(tmp_path / "train" / "cat" / "b.png", 2)
    picture(tmp_path / "train" / "ant" / "z.png", 1)
    picture(tmp_path / "train" / "cat" / "deep" / "a.png", 3)
    picture(tmp_path / "test" / "bee" / "a.png", 4)
    picture(tmp_path / "test" / ".hidden" / "a.png", 5)
    picture(tmp_path / "test" / "cat" / "._a.png", 5)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    train, test = data.load_bytes(str(tmp_path), "train"), data.load_bytes(str(tmp_path), "test")
    assert train.x.shape == (3, 1, 4, 5)
    order = sorted([1, 2, 3], key=lambda i: hashlib.sha256(str(i).encode()).digest())
    assert order != [1, 2, 3], "which would not tell the order of the paths from that of the hashes"
    assert train.ids.tolist() == train.x[:, 0, 0, 0].tolist() == order
    assert train.y.tolist() == [{1: 0, 2: 2, 3: 2}[i] for i in order]
    assert (test.x[:, 0, 0, 0].tolist(), test.y.tolist(), test.ids.tolist()) == ([4], [1], [0])
    check_splits(str(tmp_path))


def test_one_picture_in_colour_makes_all_of_them_coloured(tmp_path):
    picture(tmp_path / "a" / "a.png", 7)
    picture(tmp_path / "b" / "b.png", 8, "RGBA")
    found = data.load_bytes(str(tmp_path))
    assert found.x[:, :, 0, 0].tolist() == [[7, 7, 7], [8, 0, 9]]
    assert found.y.tolist() == [0, 1]
    assert torch.equal(data.load_bytes(str(tmp_path), "train").x, found.x)


def test_val_is_tested_on_where_there_is_no_test(tmp_path):
    for i in range(4):
        picture(tmp_path / "train" / "a" / f"{i}.png", i)
    picture(tmp_path / "val" / "a" / "v.png", 2)
    assert data.load(str(tmp_path), "test").ids.tolist() == [4]
    picture(tmp_path / "test" / "a" / "t.png", 9)
    assert data.load_bytes(str(tmp_path), "test").x.unique().tolist() == [9]
    assert data.load_bytes(str(tmp_path), "validation").x.unique().tolist() == [2]
    assert data.load_bytes(str(tmp_path), "fit").x.unique().tolist() == [0, 1, 3]


def test_pictures_that_do_not_fit_are_one_sentence(tmp_path):
    picture(tmp_path / "a" / "a.png", 7)
    picture(tmp_path / "a" / "b.png", 7, size=(6, 6))
    with pytest.raises(UserError, match=r"b.png is 6×6 pixels but others are 5×4; resize"):
        data.load(str(tmp_path))
    (tmp_path / "a" / "b.png").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"b.png is damaged or no picture"):
        data.load(str(tmp_path))
    (tmp_path / "a" / "b.png").write_bytes((tmp_path / "a" / "a.png").read_bytes()[:50])
    with pytest.raises(UserError, match=r"b.png is damaged"):
        data.load(str(tmp_path))
    Image.fromarray(np.full((4, 5), 999, np.uint16)).save(tmp_path / "a" / "b.png")
    with pytest.raises(UserError, match=r"b.png has more than 8 bits"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar-10", "Did you mean 'cifar10'"),
        ("fashion_mnist", "Did you mean 'fashion-mnist'"),
        ("no/such/folder", "Cannot read no/such/folder: there is no such file or folder"),
    ],
)
def test_unknown_names_are_one_sentence(name, words):
    with pytest.raises(UserError, match=words):
        data.load(name)


def test_hugging_faces_sets_need_their_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs datasets: pip install 'lustral\[huggingface\]'"):
        data.load("hf:cifar10")


@pytest.fixture
def hugging_face(monkeypatch, tmp_path):
    """Their library, with its cache elsewhere and without the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    return library


def test_hugging_faces_sets_are_read(hugging_face, tmp_path):
    for split, count in (("train", 20), ("test", 2)):
        pictures = [Image.new("L", (5, 4), i) for i in range(count)]
        columns = {"img": pictures, "fine_label": [i % 3 for i in range(count)]}
        features = hugging_face.Features({"img": hugging_face.Image(), "fine_label": hugging_face.Value("int64")})
        (tmp_path / "set").mkdir(exist_ok=True)
        hugging_face.Dataset.from_dict(columns, features).to_parquet(tmp_path / "set" / f"{split}.parquet")
    name = f"hf:{tmp_path / 'set'}"
    train, test = data.load_bytes(name, "train"), data.load_bytes(name, "test")
    assert train.x.shape == (20, 1, 4, 5)
    assert train.x[:, 0, 0, 0].tolist() == list(range(20))
    assert train.y.tolist() == [i % 3 for i in range(20)]
    assert test.ids.tolist() == [20, 21]
    assert len(check_splits(name).ids) == 2


def test_hugging_faces_sets_of_other_things_are_refused(hugging_face, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nhello,1\n")
    with pytest.raises(UserError, match="needs a column image or img, but has text, label"):
        data.load(f"hf:{tmp_path}", "train")
    with pytest.raises(UserError, match="Cannot load 'no/such' from Hugging Face .*; check the name and the network"):
        data.load("hf:no/such")


def test_real_cifar_10():
    """LUSTRAL_TEST_DATA is a folder that holds cifar10/ in a published format."""
    root = os.environ.get("LUSTRAL_TEST_DATA")
    if not root or not (Path(root) / "cifar10").exists():
        pytest.skip("LUSTRAL_TEST_DATA names no folder with cifar10")
    whole = data.parts(str(Path(root) / "cifar10"))
    train, test = whole.pick("train", "cifar10"), whole.pick("test", "cifar10")
    assert (train.x.shape, test.x.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert train.y[0] == 6
    assert train.y.bincount().tolist() == [5000] * 10
    assert test.y.bincount().tolist() == [1000] * 10
    means = [float(train.x[:, c].float().mean()) / 255 for c in range(3)]
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert len(whole.pick("validation", "cifar10").ids) == 5000
