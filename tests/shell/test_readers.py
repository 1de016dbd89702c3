"""Published formats of image sets are read, and nothing in them is run."""

import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
import torch

from lustral.core.errors import UserError
from lustral.shell.images import data, unpickle
from lustral.shell.images.classes import CLASSES
from published import (
    COLOUR,
    FORMATS,
    LABELS,
    PY,
    TEST_ROWS,
    TESTS,
    N,
    binary_files,
    idx_files,
    packed,
    put,
    python_files,
    records,
    zipped,
)


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
    called = {name: data.parts(name).classes for name in ("cifar10", "mnist", "fashion-mnist")}
    assert (called["cifar10"][3], called["mnist"][7], called["fashion-mnist"][9]) == ("cat", "7", "ankle boot")
    assert data.parts(str(tmp_path / "mnist")).classes == (), "which may be Fashion-MNIST's"
    fine = CLASSES["cifar100"]
    assert len(fine) == 100
    assert list(fine) == sorted(fine)  # as published
    assert (fine[0], fine[1], fine[39], fine[99]) == ("apple", "aquarium fish", "keyboard", "worm")
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
