"""Wrong input of every kind ends in exit code 2 and one sentence that says what to do: images, networks and cards."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mistakes import (
    MARKER,
    PNG,
    PURIFY,
    Cases,
    Evil,
    after,
    check,
    cut,
    evil,
    images,
    picture,
    purify,
    save,
    text,
    weights_file,
    write,
)

CASES: Cases = {
    "images: two axes": (lambda: write(images()[0, 0]), ["in.npy", "[n, c, h, w]", "(8, 8)"]),
    "images: 0 to 255": (lambda: write(255 * images()), ["in.npy", "[0, 1]", "divide by 255"]),
    "images: -1 to 1": (lambda: write(2 * images() - 1), ["in.npy", "map [-1, 1] by (x + 1) / 2"]),
    "images: NaN": (lambda: write(images() * np.nan), ["in.npy", "NaN"]),
    "images: 64-bit integers": (lambda: write(images().astype(np.int64)), ["in.npy", "8-bit", "int64"]),
    "images: pickled objects": (lambda: write(np.array([Evil()])), ["in.npy", "pickled objects", "never loaded"]),
    "images: three channels": (
        lambda: [*write(images().repeat(3, axis=1)), "--purification.denoiser=digits-unet"],
        ["in.npy", "3 channels", "choose another"],
    ),
    "images: one in colour, or three": (
        lambda: write(images()[:3, 0]),
        ["in.npy of shape (3, 8, 8) may be one image in colour or 3 grey ones", "save grey ones as [n, 1, h, w]"],
    ),
    "images: one in colour, channels last": (
        lambda: write(np.zeros((32, 32, 4), np.uint8)),
        ["in.npy of shape (32, 32, 4) may be one image in colour", "another --purification.denoiser"],
    ),
    "npy: missing": (lambda: PURIFY, ["Cannot read in.npy", "check the path"]),
    "npy: truncated": (lambda: after(write(images()), cut("in.npy")), ["in.npy", "damaged"]),
    "npy: empty": (lambda: after(PURIFY, text("in.npy", "")), ["in.npy", "damaged"]),
    "npz: truncated": (
        lambda: after(["purify", "data.npz", "out.npz"], save(), cut("data.npz")),
        ["data.npz", "damaged"],
    ),
    "npz: no x": (
        lambda: after(["purify", "other.npz", "out.npz"], np.savez("other.npz", z=images())),
        ["other.npz", "named x", "holds z"],
    ),
    "png: truncated": (
        lambda: after(PNG, picture(), cut("in.png")),
        ["in.png", "damaged"],
    ),
    "png: a text": (lambda: after(PNG, text("in.png", "hello")), ["in.png", "no picture"]),
    "png: 16 bits": (
        lambda: after(PNG, Image.fromarray(np.full((8, 8), 999, np.uint16)).save("in.png")),
        ["in.png", "8 bits"],
    ),
    "source: a text": (
        lambda: after(["purify", "in.txt", "out.txt"], text("in.txt", "x")),
        ["in.txt: no image that Lustral reads", "GIF and PPM pictures, npy and npz files"],
    ),
    "source: no images in it": (lambda: after(["purify", "in", "out"], text("in/a.txt", "x")), ["in holds no images"]),
    "target: another format": (lambda: write(images(), ["purify", "in.npy", "out.npz"]), ["name the output out.npy"]),
    "target: a file for a folder": (
        lambda: after(["purify", "in", "out.png"], Path("in").mkdir(), picture("in/a.png"), picture("out.png")),
        ["in is a folder", "out.png must be one too"],
    ),
    "target: below a file": (
        lambda: write(images(), ["purify", "in.npy", "in.npy/out.npy", *PURIFY[3:]]),
        ["Cannot write", "check the path"],
    ),
    "target: nowhere": (
        lambda: write(images(), ["purify", "in.npy", "/proc/none/out.npy", *PURIFY[3:]]),
        ["Cannot write", "check the path"],
    ),
    "purify: t* of 100 steps": (
        lambda: purify("--purification.t_star=100"),
        ["t_star", "(0, 1]", "did you mean t_star=0.1?"],
    ),
    "purify: t* of 0": (lambda: purify("--purification.t_star=0"), ["t_star", "(0, 1]", "not 0"]),
    "purify: t* beyond the denoiser": (
        lambda: purify("--purification.t_star=1"),
        ["t_star=1", "choose a smaller t_star"],
    ),
    "purify: no steps": (lambda: purify("--purification.steps=0"), ["at least 1 step"]),
    "purify: no steps of ADP": (lambda: purify("--purification.method=adp", "--purification.steps=0"), ["steps ≥ 1"]),
    "purify: negative noise": (lambda: purify("--purification.method=adp", "--purification.sigma=-1"), ["sigma ≥ 0"]),
    "purify: no rounds": (lambda: purify("--purification.rounds=0"), ["rounds must be at least 1"]),
    "purify: no batch": (lambda: purify("--batch=0"), ["batch must be at least 1"]),
    "purify: method none": (lambda: purify("--purification.method=none"), ["choose another method"]),
    "purify: unknown solver": (
        lambda: purify("--purification.solver=sdf"),
        ["purification.solver", "Did you mean 'sde'", "'sdf'"],
    ),
    "purify: unknown method": (
        lambda: purify("--purification.method=magic"),
        ["purification.method", "diffpure", "'magic'"],
    ),
    "purify: unknown option": (lambda: purify("--speed=9"), ["unrecognized arguments: --speed", "--help"]),
    "purify: unknown weights": (lambda: purify("--purification.denoiser=digits-unte"), ["Did you mean 'digits-unet'?"]),
    "purify: a classifier": (
        lambda: purify("--purification.denoiser=digits-cnn"),
        ["is a classifier", "denoiser is needed"],
    ),
    "purify: an option of another method": (
        lambda: purify("--purification.method=gnsp", "--purification.t_star=0.2"),
        ["Method gnsp has no t_star to choose", "leave t_star out"],
    ),
    "purify: an option of SSNI without it": (lambda: purify("--purification.tau=3"), ["has no tau to choose"]),
    "purify: an option of another law": (
        lambda: purify("--purification.ssni=linear", "--purification.tau=3"),
        ["SSNI's linear law has no tau"],
    ),
    "purify: bias beyond the process": (
        lambda: purify("--purification.ssni=logistic", "--purification.bias=2"),
        ["bias is added to t_star=0.1", "[0, 0.9]", "not 2"],
    ),
    "purify: steps and their length": (lambda: purify("--purification.dt=0.01"), ["either steps", "or dt"]),
    "purify: guidance that overflows": (
        lambda: purify("--purification.method=gdmp", "--purification.strength=1e30"),
        ["overflowed", "weaker guidance"],
    ),
    "purify: a strip of nothing": (
        lambda: purify("--show.strip=strip.png", "--show.images=0"),
        ["at least 1 image, not 0"],
    ),
    "reference: no images": (lambda: ["reference", "digits-unet", "--images=0"], ["at least 2 images, not 0"]),
    "weights: a pickle": (
        lambda: after(purify("--purification.denoiser=evil.pt"), evil("evil.pt")),
        ["evil.pt is a pickle", "lustral train", "lustral.defend"],
    ),
    "weights: a pickle under another name": (
        lambda: after(purify("--purification.denoiser=evil.safetensors"), evil("evil.safetensors", card=True)),
        ["evil.safetensors does not hold the network"],
    ),
    "weights: missing": (lambda: purify("--purification.denoiser=none.safetensors"), ["Cannot read none.safetensors"]),
    "weights: truncated": (
        lambda: weights_file(cut_to=0.5),
        ["own.safetensors does not hold the network", "train it again"],
    ),
    "weights: changed": (
        lambda: weights_file(cut_to=0.9, honest=False),
        ["own.safetensors is damaged or was changed", "sha256"],
    ),
    "card: missing": (
        lambda: after(weights_file(), Path("own.json").unlink()),
        ["Cannot read own.json", "no such file"],
    ),
    "card: cut": (lambda: after(weights_file(), cut("own.json")), ["own.json is no card", "mend it"]),
    "card: no text": (lambda: after(weights_file(), text("own.json", b"\xff\xfe\xff")), ["own.json is no card"]),
    "card: another object": (lambda: after(weights_file(), text("own.json", "[1]")), ["own.json is no card"]),
    "card: unknown architecture": (
        lambda: weights_file(lambda facts: facts | {"architecture": {"type": "EDN"}}),
        ["Unknown architecture 'EDN'", "Did you mean 'EDM'?"],
    ),
    "card: an architecture that is no description": (
        lambda: weights_file(lambda facts: facts | {"architecture": "EDM"}),
        ["own.json is no card", "architecture must be an object"],
    ),
    "card: an unknown argument": (
        lambda: weights_file(lambda facts: facts | {"architecture": facts["architecture"] | {"depth": 3}}),
        ["EDM", "does not fit this version", "depth"],
    ),
    "card: another network": (
        lambda: weights_file(lambda facts: facts | {"architecture": {"type": "SmallCNN"}}),
        ["does not hold the network that its card describes"],
    ),
}


@pytest.mark.parametrize(("prepare", "words"), CASES.values(), ids=CASES.keys())
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(prepare, words, lustral, tmp_path, tree, capfd):
    check(prepare(), words, lustral, tmp_path, tree, capfd)


def test_the_malicious_pickle_would_work(tmp_path, monkeypatch):
    """Or the absence of its marker above would say nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Evil()))
    assert Path(MARKER).exists()
