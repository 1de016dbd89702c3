"""No damaged file ends in a traceback, takes for ever, or takes all memory: a UserError, or what is right.

A few of every kind in the ordinary suite, thousands with ``-m fuzz``. A failure names its target and seed.
"""

import hashlib
import io
import json
import os
import resource
import signal
import struct
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from damage import damaged, damaged_json
from PIL import Image

from digits import digits
from lustral.core.errors import UserError
from lustral.shell import cards, commands, comparison, config, folder, plan, show, stored, weights
from lustral.shell.cli import main
from lustral.shell.images import data, decode, pictures, readers
from lustral.shell.options import Resources
from reports import pictures as shown
from reports import suite

FEW, MANY = 20, 2000
SECONDS, GROWTH = 60, 2**20
"""What one file may take, and what all of them may add to the process in KiB."""
KINDS = ("png", "jpg", "bmp", "webp", "tif", "gif", "ppm")


class Target(NamedTuple):
    """A good file, how it is damaged and written, and what reads it."""

    content: bytes
    read: Callable[[], object]
    write: Callable[[bytes], object]
    damage: Callable[[bytes, int], bytes] = damaged


def at(name: str) -> Callable[[bytes], object]:
    return Path(name).write_bytes


def encoded(kind: str) -> bytes:
    content = io.BytesIO()
    picture = Image.fromarray(np.indices((16, 16, 3)).sum(axis=0).astype(np.uint8) * 7)
    picture.save(content, decode.SUFFIXES[f".{kind}"])
    return content.getvalue()


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def write_npz(x: bytes) -> None:
    """An archive whose checksums are right, so that the damage is met by the reader of arrays."""
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("x.npy", x)
        archive.writestr("y.npy", npy(np.arange(4)))


def picture_target(kind: str) -> Target:
    place = Path(f"a.{kind}")
    return Target(encoded(kind), lambda: (decode.look(place), decode.read(place, "RGB")), at(place.name))


def npz_target() -> Target:
    return Target(npy(digits(4).x.numpy()), lambda: data.load("a.npz"), write_npz)


def zip_target() -> Target:
    write_npz(npy(digits(4).x.numpy()))
    content = Path("a.npz").read_bytes()
    return Target(content, lambda: (data.load("a.npz"), pictures.read(Path("a.npz"), 1)), at("a.npz"))


def npy_target() -> Target:
    return Target(npy(digits(4).x.numpy()), lambda: pictures.read(Path("a.npy"), 1), at("a.npy"))


def idx_target() -> Target:
    for split in ("train", "t10k"):
        Path(f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 20, 4, 4) + bytes(range(16)) * 20)
        Path(f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 20) + bytes(range(10)) * 2)
    name = "train-images-idx3-ubyte"

    def read() -> None:
        parts = readers.published(Path("."), ("mnist",))
        for split in ("train", "validation", "test") if parts else ():
            parts.pick(split, "mnist")

    return Target(Path(name).read_bytes(), read, at(name))


def weights_target(of: str) -> Target:
    """The shipped denoiser or its card; the card knows the checksum, so that the damage is met by what comes next."""
    source = weights.find("digits-unet")
    card, tensors = source.with_suffix(".json").read_bytes(), source.read_bytes()
    Path("own.safetensors").write_bytes(tensors)
    Path("own.json").write_bytes(card)

    def write(content: bytes) -> None:
        Path("own.safetensors").write_bytes(content)
        facts = json.loads(card) | {"sha256": hashlib.sha256(content).hexdigest()}
        Path("own.json").write_text(json.dumps(facts))

    def read() -> None:
        show.card(cards.card(Path("own.safetensors")))
        weights.load("own.safetensors", "denoiser")

    if of == "card":
        return Target(card, read, at("own.json"), damaged_json)
    return Target(tensors, read, write)


def a_run(name: str) -> None:
    assert main(["evaluate", name, "--images=2", "--stages=[clean,null]", "--draws=2", "--purification.steps=1"]) == 0


def run_target(of: str) -> Target:
    a_run("run")
    place = Path("run") / of
    if of == "run.json":
        return Target(place.read_bytes(), lambda: plan.load(Path("run"), Resources()), at(str(place)), damaged_json)
    a_run("other")
    return Target(place.read_bytes(), lambda: comparison.runs(Path("run"), Path("other")), at(str(place)))


def results_target() -> Target:
    folder.publish(Path("run"), suite(), shown())
    place = Path("run/results.json")

    def read() -> None:
        show.table(stored.results(Path("run")))
        commands.report(Path("run"))

    return Target(place.read_bytes(), read, at(str(place)), damaged_json)


def config_target() -> Target:
    content = config.recommended()["cifar10"].read_bytes()
    return Target(content, lambda: config.read(Path("c.yaml")), at("c.yaml"))


TARGETS: dict[str, Callable[[], Target]] = {
    **{kind: lambda kind=kind: picture_target(kind) for kind in KINDS},
    **{"npy": npy_target, "npz": npz_target, "zip": zip_target, "idx": idx_target, "configuration": config_target},
    **{"card": lambda: weights_target("card"), "safetensors": lambda: weights_target("safetensors")},
    **{"results.json": results_target, "run.json": lambda: run_target("run.json")},
    "ledger": lambda: run_target("ledger.sqlite"),
}


def tried(target: Target, seed: int) -> str:
    """What is wrong with how a damaged file is read; nothing where all is well."""
    target.write(target.damage(target.content, seed))
    signal.alarm(SECONDS)
    try:
        target.read()
    except (UserError, UnicodeDecodeError):
        return ""
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return ""


def _late(*_: object) -> None:
    raise TimeoutError("still reading")


def all_tried(make: Callable[[], Target], seeds: range, answer: int) -> None:
    """In a process of its own: says through ``answer`` which seeds go wrong, and how much memory was taken."""
    signal.signal(signal.SIGALRM, _late)
    target = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = [(seed, said) for seed in seeds if (said := tried(target, seed))]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    os.write(answer, json.dumps({"count": len(wrong), "first": wrong[:3], "grown": grown}).encode()[:60_000])


def check(name: str, seeds: range) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        out = os.open(os.devnull, os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
        try:
            all_tried(TARGETS[name], seeds, writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    assert said, f"{name}: the process ended"
    found = json.loads(said)
    texts = [f"{name}, seed {seed}: {text}" for seed, text in found["first"]]
    assert not found["count"], f"{found['count']} of {len(seeds)}\n" + "\n".join(texts)
    assert found["grown"] < GROWTH


@pytest.mark.parametrize("name", [*TARGETS])
def test_a_few_damaged_files_are_read_rightly_or_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(name, range(FEW))


@pytest.mark.fuzz
@pytest.mark.parametrize("name", [*TARGETS])
def test_thousands_of_damaged_files_are_read_rightly_or_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(name, range(1_000, 1_000 + MANY))
