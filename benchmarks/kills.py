"""kill -9 at random moments, and what survives: ``python -m benchmarks.kills [--kills 60] [--seed 0] [COMMAND …]``.

Each command runs undisturbed once; then its processes are killed at moments drawn over that time, one or two in a
folder, before the same command runs to its end. Counted is: whether it did, whether its results are the undisturbed
ones, to the bit, and whether anything half written is left. Processes are forked from one that has loaded torch, so
that kills fall into the work and not into the imports.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from PIL import Image

from benchmarks import store
from lustral.shell.cli import main
from lustral.shell.exits import INTERRUPTED
from lustral.shell.images import data, download
from lustral.shell.trainer import fit

SMALL = ["--images=3", "--purification.steps=2", "--search.steps=2", "--search.eot=1", "--draws=2", "--micro_batch=4"]
ONE = ["--resources.threads=2", "--resources.batch=1"]


@dataclass(frozen=True)
class Case:
    """A command that writes below a folder, and what its results are."""

    words: Callable[[Path], list[str]]
    results: Callable[[Path], object]
    prepare: Callable[[Path], None] = lambda place: None


def ledger(place: Path) -> object:
    """What a run's results say, its times and places apart."""
    found = json.loads((place / "out/results.json").read_text(encoding="utf-8"))
    return found["ledger_digest"], [(row["system"], row["stage"], row["accuracy"]) for row in found["rows"]]


def files(place: Path) -> object:
    """All files below ``out``."""
    return {str(path.relative_to(place)): path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()}


def pictures(place: Path) -> None:
    for i, image in enumerate(data.load("digits", "test").x[:12]):
        (place / "in").mkdir(exist_ok=True)
        Image.fromarray((image[0] * 255).byte().numpy()).save(place / f"in/{i}.png")


def shards(place: Path) -> None:
    for k in (1, 2):
        run(["evaluate", str(place / f"part-{k}"), "--stages=[clean,exact]", *SMALL, f"--shard={k}/2"])


def idx() -> dict[str, bytes]:
    """A set in MNIST's files, of noise."""
    made = {}
    for stem, n in (("train", 2000), ("t10k", 300)):
        pixels = hashlib.shake_256(stem.encode()).digest(n * 784)
        made[f"{stem}-images-idx3-ubyte.gz"] = gzip.compress(struct.pack(">IIII", 2051, n, 28, 28) + pixels, mtime=0)
        labels = struct.pack(">II", 2049, n) + bytes(i % 10 for i in range(n))
        made[f"{stem}-labels-idx1-ubyte.gz"] = gzip.compress(labels, mtime=0)
    return made


class Slow(BaseHTTPRequestHandler):
    """Serves a set's files, from any byte on, about 4 MB a second."""

    files = idx()

    def do_GET(self) -> None:
        content = self.files[self.path.rpartition("/")[2]]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        with suppress(ConnectionError):  # whoever asked was killed
            for first in range(start, len(content), 40_000):
                self.wfile.write(content[first : first + 40_000])
                time.sleep(0.01)

    def log_message(self, *_: object) -> None:
        pass


CASES = {
    "evaluate": Case(lambda p: ["evaluate", f"{p}/out", "--stages=[clean,null,exact]", *SMALL, *ONE], ledger),
    "train": Case(
        lambda p: ["train", "classifier", f"{p}/out/net.safetensors", "--network.width=8", "--recipe.steps=30",
                   "--recipe.batch=16", "--threads=1"],
        lambda p: (p / "out/net.safetensors").read_bytes(),
    ),
    "tune": Case(
        lambda p: ["tune", f"{p}/out", *SMALL[:-1], "--over.t_star=[0.05,0.1]", *ONE],
        lambda p: (ledger(p), (p / "out/best.yaml").read_bytes()),
    ),
    "merge": Case(lambda p: ["merge", f"{p}/out", f"[{p}/part-1,{p}/part-2]"], ledger, shards),
    "purify": Case(
        lambda p: ["purify", f"{p}/in", f"{p}/out", "--seed=0", "--purification.steps=5", "--batch=1"], files, pictures
    ),
    "data": Case(lambda p: ["data", "mnist", f"--folder={p}/out", f"--from={os.environ['MIRROR']}"], files),
}  # fmt: skip


def run(words: list[str], seconds: float | None = None) -> int:
    """Runs the command line in a process, silently, to its end or for so many seconds; its exit code, or −9."""
    if not (child := os.fork()):
        null, code = os.open(os.devnull, os.O_WRONLY), INTERRUPTED
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            code = main(words)
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def mirror() -> Iterator[None]:
    """The set's files on a server of a process of its own, which ``lustral data`` takes for the publisher's."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in Slow.files.items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    os.environ["MIRROR"] = f"http://127.0.0.1:{server.server_port}"
    download.ORIGINS["mnist"] = download.Origin(os.environ["MIRROR"], sums)
    if not (child := os.fork()):
        server.serve_forever()
    server.server_close()
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def warm() -> None:
    """Lets this process load what the others need. On one thread, without gradients: others do not survive a fork."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(None), redirect_stderr(None):
        main(["evaluate", folder, "--stages=[clean]", *SMALL])


def left(*places: Path) -> list[str]:
    """What is half written below some folders."""
    return [
        path.name for place in places for path in place.rglob("*") if "lustral-" in path.name or ".part" in path.name
    ]


def trial(case: Case, kills: int, chance: random.Random, root: Path) -> dict[str, int]:
    """Kills so many processes of a command, and counts what survives."""
    whole = root / "whole"
    whole.mkdir()
    case.prepare(whole)
    began = time.monotonic()
    assert run(case.words(whole)) == 0
    seconds, expected = time.monotonic() - began, case.results(whole)
    found = {"seconds": round(seconds, 1)} | dict.fromkeys(
        ("kills", "ended before", "starts after", "failed", "other results", "files left"), 0
    )
    place, number = None, 0
    while found["kills"] < kills:
        if place is None:
            place, number = root / str(number), number + 1
            place.mkdir()
            case.prepare(place)
        if run(case.words(place), chance.uniform(0, seconds)) == -signal.SIGKILL:
            found["kills"] += 1
            if chance.random() < 0.5 and found["kills"] < kills:
                continue
        else:
            found["ended before"] += 1
        found["starts after"] += 1
        if run(case.words(place)) != 0:
            found["failed"] += 1
        elif case.results(place) != expected:
            found["other results"] += 1
        found["files left"] += len(left(place, Path(tempfile.gettempdir())))
        place = None
    return found


def bench(names: list[str], kills: int, seed: int) -> list[store.Part]:
    """A row for every command."""
    fit.SAVE_EVERY = 0.0
    warm()
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="kills-") as root, mirror():
            Path(root, "tmp").mkdir()
            os.environ["TMPDIR"] = tempfile.tempdir = str(Path(root, "tmp"))
            found = trial(CASES[name], kills, random.Random(f"{seed} {name}"), Path(root))
            tempfile.tempdir = None
        print(name, found, flush=True)
        rows.append([f"`{name}`", *map(str, found.values())])
    said = f"{kills} random `kill -9` each, seed {seed}."
    return [said, store.Table(["command", *found], rows)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=list(CASES))
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    parts = bench(given.commands, given.kills, given.seed)
    if given.commands == list(CASES):
        store.keep("kills", {"kills": parts})
