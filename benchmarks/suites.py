"""What the evaluation itself costs, as ratios within one run: ``python -m benchmarks.suites``.

On the digits and the networks that ship, two cores, one batch on each. Wall time, so the machine should be idle.

    leaving    a suite's cascade with decided images leaving, against the same attacks on all images to the end
    batching   exact gradients of images × draws in batches, against one image and one draw at a time
    outside    the share of an exact attack's time that is not spent in network calls

Exits with 1 if a bar is missed.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import lustral
from benchmarks import store
from lustral.attacks.apgd import APGD
from lustral.attacks.gradients import Selection, exact
from lustral.attacks.losses import margin
from lustral.attacks.search import Attack
from lustral.core.noise import Key
from lustral.core.threat import Linf
from lustral.core.vote import Single
from lustral.defence import Defence
from lustral.evaluate import suites
from lustral.evaluate.protocol import Job, System
from lustral.shell import build, runner, standard
from lustral.shell.ledger import Ledger
from lustral.shell.options import Classification, Purification, Resources

CASCADE = ("transfer", "apgd-bpda", "apgd-margin", "apgd-ce", "apgd-t", "fab-t", "square")
THREAT, KEY, BUDGET = Linf(3 / 16), Key(0), 2 << 30


def system(micro_batch: int | None = 64) -> System:
    return _made("diffpure", Purification(solver="sde", steps=10), micro_batch)


def _made(name: str, how: Purification, micro_batch: int | None) -> System:
    return build.system(name, *standard.system(how, Classification(), "digits"), micro_batch)


def to_the_end(job: Job) -> Job:
    """The same attack without letting any image go."""
    attack = job.stage.attack
    changes = {"after": ()}
    if attack is not None and hasattr(attack, "patience"):
        changes["attack"] = replace(attack, patience=0)
    return replace(job, stage=replace(job.stage, **changes))


def leaving(of: System, suite: str, images: int) -> list[str]:
    """The ratio of times of a suite's cascade, and the worst-case accuracies of both."""
    data = lustral.data("digits")[:images]
    jobs = [j for j in suites.jobs(suite, [of], THREAT, images, BUDGET) if j.stage.name in CASCADE]
    seconds, left = {}, {}
    for name, plan in (("leaving", jobs), ("to the end", [to_the_end(job) for job in jobs])):
        with tempfile.TemporaryDirectory() as folder, runner.open_ledger(plan, data, KEY, Path(folder)) as ledger:
            started = time.perf_counter()
            runner.execute(plan, data, KEY, ledger, Resources())
            seconds[name], left[name] = time.perf_counter() - started, worst(ledger, of.name)
    faster = seconds["to the end"] / seconds["leaving"]
    what = f"{suite} suite's cascade, {of.name}, decided images leaving / none leaving ({images} images)"
    kept = f"{left['leaving']:.1%} and {left['to the end']:.1%} left"
    return [what, f"{faster:.3g} × faster; {kept}", ""]


def worst(ledger: Ledger, name: str) -> float:
    """The mean over images of the least share of right draws."""
    least: dict[int, float] = {}
    for stage in CASCADE:
        for image, at in ledger.standing(name, stage, Single()).items():
            least[image] = min(at.draws, least.get(image, 1.0))
    return statistics.mean(least.values())


def batching(images: int, eot: int) -> float:
    """How many times faster gradients of all images and draws are than those of one image and one draw at a time."""
    data, defence = lustral.data("digits")[:images], system(None).defence
    rng = KEY.rng(data.ids)

    def batched() -> None:
        halves = [slice(k, None, 2) for k in range(2)]
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(lambda h: exact(eot, BUDGET)(defence, data.x[h], data.y[h], margin, rng[h]), halves))

    def one_by_one() -> None:
        for i in range(images // 8):
            for draw in range(eot):
                one = data[i : i + 1]
                exact(1, BUDGET)(defence, one.x, one.y, margin, KEY.rng(one.ids, draw))

    torch.set_num_threads(2)
    return 8 * alternating(one_by_one, batched)


def alternating(a: Callable[[], None], b: Callable[[], None], rounds: int = 5) -> float:
    """The median over rounds of the time of a over that of b; the first round warms up."""
    ratios = []
    for _ in range(rounds + 1):
        times = []
        for job in (a, b):
            started = time.perf_counter()
            job()
            times.append(time.perf_counter() - started)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])


class Noting:
    """A network that notes the size of every call, and whether it was differentiated."""

    def __init__(self, inner):
        self.inner, self.calls = inner, Counter()
        self.sigma_min, self.sigma_max = getattr(inner, "sigma_min", 0.0), getattr(inner, "sigma_max", 0.0)

    def __call__(self, *args: Tensor) -> Tensor:
        self.calls[tuple(tuple(a.shape) for a in args), torch.is_grad_enabled() and args[0].requires_grad] += 1
        return self.inner(*args)


def outside(images: int) -> float:
    """The share of an attack's time that the same network calls, made again and nothing else, do not take."""
    torch.set_num_threads(1)
    data, base = lustral.data("digits")[:images], system(None).defence
    denoiser, classifier = Noting(base.purifier.denoiser), Noting(base.classifier)
    defence = Defence(classifier, replace(base.purifier, denoiser=denoiser))
    attack: Attack = APGD(THREAT, exact(8, BUDGET), margin, 10, patience=0, select=Selection(8))

    def searching() -> None:
        attack.run(defence, data.x, data.y, KEY.rng(data.ids))

    searching()
    calls = {net: dict(net.calls) for net in (denoiser, classifier)}

    def calling() -> None:
        for net, counted in calls.items():
            for (shapes, differentiated), n in counted.items():
                for _ in range(n):
                    again(net.inner, shapes, differentiated)

    return 1 - 1 / alternating(searching, calling, rounds=3)


def again(net: Callable, shapes: tuple, differentiated: bool) -> None:
    """One call of a network, and its input gradient if asked for."""
    x, *rest = (torch.full(shape, 0.5) for shape in shapes)
    with torch.set_grad_enabled(differentiated):
        out = net(x.requires_grad_(differentiated), *rest)
    if differentiated:
        torch.autograd.grad(out.sum(), x)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48)
    images = parser.parse_args().images
    bare = _made("undefended", Purification(method="none"), 64)
    rows = [leaving(bare, "standard", images), leaving(system(), "quick", images)]
    faster, share = batching(32, 10), outside(32)
    what = "exact gradients of 32 images × 10 draws in batches / one image and one draw at a time"
    rows.append([what, f"{faster:.1f} × faster", "5"])
    rows.append(["share of an exact attack's time outside network calls", f"{share:.1%}", "10 %"])
    print(found := store.Table(["what", "measured", "bar"], rows))
    store.keep("results", {"evaluation": [found]})
    return int(faster < 5 or share > 0.10)


if __name__ == "__main__":
    sys.exit(main())
