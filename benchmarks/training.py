"""What a step of training costs, as ratios within one run: ``python -m benchmarks.training [forms] [processes]``.

    forms       the step in every form that the recipe offers, against plain float32: channels first, eager, AdamW and
                the average one tensor after the other, memory given back; and where the time of both goes
    processes   two processes of one thread against one, on the same batches: time per image, half of it being perfect

Every form alternates with plain float32, each in a process of its own, and the ratio is the median of the rounds' own.
The machine should be idle. Exits with 1 if a bar is missed, for the forms by any network's best.
"""

import argparse
import csv
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import store
from benchmarks.speed import Bench, ratio
from lustral.classifiers.whitened import WhitenedResNet
from lustral.core.noise import Key
from lustral.denoisers.nets.unet import UNet
from lustral.denoisers.preconditioning import EDM
from lustral.shell import memory
from lustral.training.batches import Images, Source
from lustral.training.denoising import Denoising
from lustral.training.loop import train
from lustral.training.objectives import CrossEntropy, Objective
from lustral.training.recipe import Recipe

BARS = {"forms": 1.6, "processes": 1.1}
PLAIN = "plain"
LAST, BF16 = {"channels_last": True}, {"precision": "bfloat16"}
FORMS = {
    "fused optimiser, average at once, memory kept": {},
    "… and channels last": LAST,
    "… and channels last, compiled": LAST | {"compile": True},
    "… and channels last, bfloat16": LAST | BF16,
    "… and bfloat16": BF16,
    "… and bfloat16, compiled": BF16 | {"compile": True},
}
NETS: dict[str, tuple[Callable[[], nn.Module], Objective, int]] = {
    "digits-unet (1×8×8)": (lambda: EDM(UNet(1, 16, (1, 2), 1, (), 2), 0.38), Denoising(), 8),
    "cifar10-unet (3×32×32)": (lambda: EDM(UNet(3, 48, (1, 2), 1, (), 2), 0.25), Denoising(), 32),
    "cifar10-whitened (3×32×32)": (lambda: WhitenedResNet(activation="gelu"), CrossEntropy(), 32),
}
RECIPE = Recipe(steps=10_000, batch=512)


def source(size: int) -> Source:
    x = Key(0).rng(512).uniform(torch.empty(512, 1 if size == 8 else 3, size, size))
    return Source(Images(x, torch.arange(512) % 10))


def plain(model: nn.Module, objective: Objective, images: Source, recipe: Recipe) -> Iterator[None]:
    """The same steps without any of the means to be fast."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, foreach=False, fused=False)
    average = [p.detach().clone() for p in model.parameters()]
    key = Key(0).fold("train")
    for step in range(recipe.steps):
        x, y = images.batch(key, recipe.batch, step, slice(0, recipe.batch))
        optimiser.zero_grad()
        objective(model, x, y, key.fold("step", step).rng(recipe.batch).fold("objective")).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip, foreach=False)
        optimiser.step()
        with torch.no_grad():
            for a, p in zip(average, model.parameters(), strict=True):
                a.lerp_(p, 1 - recipe.decay(step))
        yield


def serve(pipe: Connection, net: str, form: str) -> None:
    """A process that trains in one form: answers ``step`` with None once it is done, ``where`` with shares of time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, objective, size = NETS[net]
    if form == PLAIN:
        steps = plain(make().train(), objective, source(size), RECIPE)
    else:
        memory.keep()
        steps = train(make(), objective, source(size), replace(RECIPE, **FORMS[form]))
    with suppress(EOFError):  # the other side is gone
        while True:
            pipe.send(where(lambda: next(steps)) if pipe.recv() == "where" else next(steps) and None)


class Form:
    """Steps of one form, made by a process of its own, whose memory is its own matter."""

    def __init__(self, net: str, form: str):
        self.pipe, theirs = multiprocessing.Pipe()
        new = multiprocessing.get_context("spawn").Process
        self.process = new(target=serve, args=(theirs, net, form), daemon=True)
        self.process.start()

    def __call__(self, what: str = "step") -> object:
        self.pipe.send(what)
        return self.pipe.recv()


def forms(rounds: int, only: str = "") -> bool:
    """Ratios of every form for every network whose name begins so; whether the best of each reaches the bar."""
    good = True
    for net in (name for name in NETS if name.startswith(only)):
        rows, fastest, gain = [[PLAIN, "", "1.00"]], PLAIN, 0.0
        for form in FORMS:  # two processes at a time, so that memory is no matter
            made = {name: Form(net, name) for name in (PLAIN, form)}
            for job in made.values():  # a compiler's work, one after the other
                job()
            seen = Bench(rounds, time.perf_counter).times(**made)
            faster = ratio(seen[PLAIN], seen[form])
            rows[0][1] = rows[0][1] or f"{1e3 * statistics.median(seen[PLAIN]):.0f}"
            rows.append([form, f"{1e3 * statistics.median(seen[form]):.0f}", f"{faster:.2f}"])
            if faster > gain:
                fastest, gain, profiles = form, faster, {name: job("where") for name, job in made.items()}
            for job in made.values():
                job.process.kill()
        said: list[store.Part] = [store.Table([f"{net}, batch {RECIPE.batch}", "ms", "× faster"], rows)]
        said += [f"Where the time of “{form}” goes: {profiles[form]}." for form in (PLAIN, fastest)]
        said += [f"The best ratio is {gain:.2f} (bar {BARS['forms']}). {bound(net, rows[0][1])}"]
        print(store.text(said), flush=True)
        store.keep("training-speed", {net.partition(" ")[0]: said})
        good &= gain >= BARS["forms"]
    return good


def bound(net: str, plain_ms: str) -> str:
    """How fast a step could be in float32: its convolutions and matrix products at a large product's rate."""
    make, objective, size = NETS[net]
    with FlopCounterMode(display=False) as counted:
        next(train(make(), objective, source(size), RECIPE))
    a = torch.rand(2048, 2048)
    seconds = min(Bench(9, time.perf_counter).times(product=lambda: a @ a)["product"])
    work, rate = counted.get_total_flops() / 1e9, 2 * 2048**3 / seconds / 1e9
    least = 1e3 * work / rate
    return (
        f"Its {work:.1f} GFLOP would take {least:.0f} ms at the {rate:.0f} GFLOP/s of a large matrix product, "
        f"were all else free: {float(plain_ms) / least:.1f} × faster."
    )


def where(step: Callable[[], object]) -> str:
    """Shares of one step's time by operation, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    times: Counter[str] = Counter()
    for event in seen.key_averages():
        times["fused kernels" if "##" in event.key else event.key.removeprefix("aten::")] += event.self_cpu_time_total
    total = sum(times.values())
    return ", ".join(f"{name} {t / total:.0%}" for name, t in times.most_common(8))


def processes(steps: int = 60) -> bool:
    """Time per image of two processes over half of one's."""
    with tempfile.TemporaryDirectory() as folder:
        images = Key(0).rng(512).uniform(torch.empty(512, 3, 32, 32)).numpy()
        np.savez(f"{folder}/images.npz", x=images, y=np.arange(512) % 10)
        options = ["train", "denoiser", "--data=images.npz", "--network.width=32", "--network.patch=1", "--threads=1"]
        options += [f"--recipe.steps={steps}", "--recipe.batch=32"]
        launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "lustral"]
        seconds = {}
        for name, program in chain.from_iterable(repeat([("one", ["-m", "lustral"]), ("two", launch)], 2)):
            out = Path(folder, f"{name}-{len(seconds)}.safetensors")
            subprocess.run([sys.executable, *program, *options, str(out)], cwd=folder, check=True, capture_output=True)
            with open(out.with_suffix(".csv"), encoding="utf-8") as f:
                rates = [float(row["images_per_second"]) for row in csv.DictReader(f)][1:]
            seconds.setdefault(name, []).append(1 / statistics.median(rates))
    over = ratio(seconds["two"], [t / 2 for t in seconds["one"]])
    print(f"\nTwo processes take {over:.3f} of half of one's time per image (bar {BARS['processes']}).")
    return over <= BARS["processes"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["forms", "processes"], help="forms, processes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--net", default="", help="forms: only networks whose names begin so, like cifar10-unet")
    given = parser.parse_args()
    torch.set_num_threads(1)
    passed = [forms(given.rounds, given.net) if what == "forms" else processes() for what in given.what]
    sys.exit(not all(passed))
