"""What a step of training costs, as ratios within one run: ``python -m benchmarks.training [forms] [processes]``.

    forms       the step in every form that the recipe offers, against plain float32: channels first, eager, AdamW and
                the average one tensor after the other; and where the time of the fastest goes
    processes   two processes of one thread against one, on the same batches: time per image, half of it being perfect

Steps alternate between the forms and the ratio is the median of the rounds' own. The machine should be idle. Exits
with 1 if a bar is missed.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import Bench, ratio
from lustral.classifiers.resnet import ResNet
from lustral.core.noise import Key
from lustral.denoisers.nets.unet import UNet
from lustral.denoisers.preconditioning import EDM
from lustral.training.batches import Images, Source
from lustral.training.denoising import Denoising
from lustral.training.loop import train
from lustral.training.objectives import CrossEntropy, Objective
from lustral.training.recipe import Recipe

BARS = {"forms": 1.6, "processes": 1.1}
FORMS = {
    "fused optimiser, average at once": {},
    "channels last": {"channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "compiled": {"compile": True},
    "compiled, channels last": {"compile": True, "channels_last": True},
    "compiled, bfloat16": {"compile": True, "precision": "bfloat16"},
}
NETS: dict[str, tuple[Callable[[], nn.Module], Objective, int, int]] = {
    "digits U-Net, 1×8×8": (lambda: EDM(UNet(1, 16, (1, 2), 1, (), 2), 0.38), Denoising(), 8, 128),
    "U-Net, 3×32×32": (lambda: EDM(UNet(3, 32, (1, 2, 2), 2), 0.25), Denoising(), 32, 32),
    "ResNet-9, 3×32×32": (lambda: ResNet(width=32), CrossEntropy(), 32, 64),
}


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


def forms(rounds: int) -> bool:
    """Ratios of every form for every network; whether the best of each reaches the bar."""
    good = True
    for name, (make, objective, size, batch) in NETS.items():
        recipe = Recipe(steps=10_000, batch=batch)
        torch.manual_seed(0)
        steps = {"plain": plain(make().train(), objective, source(size), recipe)}
        for form, options in FORMS.items():
            steps[form] = train(make(), objective, source(size), replace(recipe, **options))
        seen = Bench(rounds, time.perf_counter).times(**{form: (lambda s=s: next(s)) for form, s in steps.items()})
        gains = {form: ratio(seen["plain"], times) for form, times in seen.items() if form != "plain"}
        best = max(gains, key=gains.get)
        print(
            f"\n| {name}, batch {batch}: {1e3 * statistics.median(seen['plain']):.0f} ms plain | × faster |\n|---|---|"
        )
        for form, gain in gains.items():
            print(f"| {form} | {gain:.2f} |")
        print(f"\nWhere the time of “{best}” goes: {where(lambda s=steps[best]: next(s))}")
        good &= gains[best] >= BARS["forms"]
    return good


def where(step: Callable[[], object]) -> str:
    """Shares of one step's time by operation, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    times = Counter({event.key: event.self_cpu_time_total for event in seen.key_averages()})
    total = sum(times.values())
    return ", ".join(f"{name.removeprefix('aten::')} {t / total:.0%}" for name, t in times.most_common(8))


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
    given = parser.parse_args()
    torch.set_num_threads(1)
    passed = [forms(given.rounds) if what == "forms" else processes() for what in given.what]
    sys.exit(not all(passed))
