"""What Lustral adds to the cost of the network, as ratios within one run: ``python -m benchmarks.speed``.

Every comparison alternates its sides, A B A B, and takes the median of the rounds' own ratios, so a drifting machine
cancels. With one thread (the default) time is the CPU time of this process, which other jobs disturb least; with more
it is wall time, and the machine should be idle. Networks have random weights, frozen: only their speed counts.
Prints a table, stores it for docs/results.md, and exits with 1 if a bar is missed.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import store
from lustral.core.adjoint import Adjoint, Checkpointed, Direct
from lustral.core.kernel import purify
from lustral.core.lanes import Lanes
from lustral.core.noise import Key
from lustral.denoisers.base import Autocast, Denoiser
from lustral.denoisers.nets.unet import UNet
from lustral.denoisers.preconditioning import EDM
from lustral.purifiers.diffusion import Diffusion
from lustral.purifiers.presets import diffpure
from lustral.samplers import SDE
from lustral.schedules import VP

Job = Callable[[], object]


@dataclass(frozen=True)
class Line:
    """One measured number; ``bar`` is the largest value that is good enough, None where there is nothing to pass."""

    name: str
    value: float
    unit: str = "×"
    bar: float | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.bar is None or self.value <= self.bar


@dataclass(frozen=True)
class Bench:
    """How to measure."""

    rounds: int
    clock: Callable[[], float]

    def times(self, **jobs: Job) -> dict[str, list[float]]:
        """Seconds of every job in every round, in turns; one round before these warms up."""
        seen: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(self.rounds + 1):
            for name, job in jobs.items():
                start = self.clock()
                job()
                seen[name].append(self.clock() - start)
        return {name: values[1:] for name, values in seen.items()}


def ratio(a: list[float], b: list[float]) -> float:
    """The median of the ratios of neighbours in time."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def unet(width: int, mult: tuple[int, ...], attention: tuple[int, ...] = ()) -> UNet:
    """A frozen network for 3×32×32."""
    return UNet(3, width, mult, 2, attention).eval().requires_grad_(False)


def small() -> UNet:
    return unet(64, (1, 2, 2))


def millions(net: UNet) -> str:
    return f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters"


def images(n: int) -> Tensor:
    return Key(0).rng(n).uniform(torch.empty(n, 3, 32, 32))


def no_grad(job: Job) -> Job:
    def run() -> None:
        with torch.no_grad():
            job()

    return run


def calls(net: UNet, x: Tensor, n: int) -> Job:
    """n bare forward calls."""
    level = torch.zeros(len(x))
    return no_grad(lambda: [net(x, level) for _ in range(n)])


def input_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Job:
    """A forward call and the gradient of its output's sum with respect to x."""

    def run() -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]

    return run


class Stopwatch(nn.Module):
    """A network that adds up the time spent in it."""

    def __init__(self, net: UNet, clock: Callable[[], float]):
        super().__init__()
        self.net, self.clock, self.seconds = net, clock, 0.0

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        start = self.clock()
        out = self.net(x, conditioning)
        self.seconds += self.clock() - start
        return out


def purification(bench: Bench) -> Iterator[Line]:
    net, x, n = small(), images(8), 20
    watch = Stopwatch(net, bench.clock)
    purifier, rng = diffpure(EDM(watch), 0.1, SDE(steps=n)), Key(1).rng(8)
    inside: list[float] = []

    def run() -> None:
        watch.seconds = 0.0
        purify(purifier, x, rng)
        inside.append(watch.seconds)

    t = bench.times(purify=no_grad(run), bare=calls(net, x, n))
    note = f"{n} SDE steps, batch 8, {millions(net)}"
    yield Line("purification / bare calls", ratio(t["purify"], t["bare"]), bar=1.03, note=note)
    note = "the same runs, each against its own network calls, so drift cancels"
    yield Line("purification / its own network calls", ratio(t["purify"], inside[1:]), bar=1.03, note=note)


def gradients(bench: Bench) -> Iterator[Line]:
    net, x, n = small(), images(8), 8
    denoiser = EDM(net)
    purifier, rng = diffpure(denoiser, 0.1, SDE(steps=n)), Key(1).rng(8)
    sigma = torch.full((8,), 0.1)

    def exact(adjoint: Adjoint) -> Job:
        return input_gradient(lambda leaf: purify(purifier, leaf, rng, adjoint=adjoint), x)

    one = input_gradient(lambda leaf: denoiser(leaf, sigma), x)
    t = bench.times(
        recompute=exact(Checkpointed()),
        keep=exact(Checkpointed(budget=8 << 30)),
        bare=calls(net, x, n),
        plain=exact(Direct()),
        both=lambda: [one() for _ in range(n)],
    )
    note = f"{n} SDE steps, batch 8, {millions(net)}"
    yield Line("exact gradient, recomputing / bare calls", ratio(t["recompute"], t["bare"]), bar=3.1, note=note)
    yield Line("exact gradient, graphs kept / bare calls", ratio(t["keep"], t["bare"]), bar=2.1, note=note)
    note = "the network alone, whose backward pass the bars above take to be as fast as its forward pass"
    yield Line("forward + input gradient / bare calls", ratio(t["both"], t["bare"]), note=note)
    floor = [a + b for a, b in zip(t["bare"], t["both"], strict=True)]
    yield Line("recomputing / the network's own share of it", ratio(t["recompute"], floor), bar=1.03)
    yield Line("graphs kept / plain autograd, which keeps them too", ratio(t["keep"], t["plain"]), bar=1.03)


def noise(bench: Bench) -> Iterator[Line]:
    net, x, rng = unet(128, (1, 2, 2, 2), (1,)), images(8), Key(1).rng(8)
    t = bench.times(noise=lambda: [rng.normal(x) for _ in range(20)], step=calls(net, x, 1))
    share = 100 * ratio(t["noise"], t["step"]) / 20
    yield Line("addressed noise / one step", share, "%", bar=3.0, note=f"batch 8, {millions(net)}")


@dataclass(frozen=True)
class Nothing:
    """A denoiser that costs nothing."""

    sigma_min: float = 0.0
    sigma_max: float = 100.0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x


def loop(bench: Bench) -> Iterator[Line]:
    """Against the shortest Euler–Maruyama loop that one can write, which takes its noise from torch's stream."""
    n = 100
    purifier, empty = diffpure(Nothing(), 0.1, SDE(steps=n)), Nothing()
    for batch in (1, 8, 64):
        x, rng = images(batch), Key(1).rng(batch)

        def minimal(x: Tensor = x) -> Tensor:
            y = x + 0.1 * torch.randn_like(x)
            for _ in range(n):
                sigma = torch.full((len(y),), 0.1)
                y = 0.99 * y + 0.01 * empty(y, sigma) + 0.01 * torch.randn_like(y)
            return y

        ours = no_grad(lambda x=x, rng=rng: purify(purifier, x, rng))
        t = bench.times(ours=ours, minimal=no_grad(minimal))
        each = 1e6 * statistics.median(t["ours"]) / n
        least = 1e6 * statistics.median(t["minimal"]) / n
        note = f"per call, noise included; the minimal loop takes {least:.0f} µs"
        yield Line(f"loop overhead, batch {batch}", each, "µs", note=note)
        yield Line(f"loop / minimal loop, batch {batch}", ratio(t["ours"], t["minimal"]))


def command_line(bench: Bench) -> Iterator[Line]:
    """Wall time, whatever the clock: it is spent in another process."""
    program = Path(sys.executable).with_name("lustral")
    if not program.exists() or subprocess.run([program, "--help"], capture_output=True).returncode:
        yield Line("lustral --help", float("nan"), "s", note="skipped: the command does not run here")
        return

    def run(*command: str | Path) -> Job:
        return lambda: subprocess.run(command, check=True, capture_output=True)

    wall = Bench(bench.rounds, time.perf_counter)
    t = wall.times(help=run(program, "--help"), torch=run(sys.executable, "-c", "import torch"))
    note = f"importing torch takes {statistics.median(t['torch']):.2f} s"
    yield Line("lustral --help", statistics.median(t["help"]), "s", note=note)


def precision(bench: Bench) -> Iterator[Line]:
    net, x, sigma = small(), images(8), torch.full((8,), 0.1)
    planes, last = EDM(net), EDM(small().to(memory_format=torch.channels_last))
    plain, wide = x, x.contiguous(memory_format=torch.channels_last)
    variants: dict[str, tuple[Denoiser, Tensor]] = {
        "fp32 NCHW": (planes, plain),
        "fp32 channels_last": (last, wide),
        "bf16 NCHW": (Autocast(planes), plain),
        "bf16 channels_last": (Autocast(last), wide),
    }
    jobs: dict[str, Job] = {}
    for name, (denoiser, image) in variants.items():
        one = partial(denoiser, sigma=sigma)
        jobs[f"{name}, forward"] = no_grad(partial(one, image))
        jobs[f"{name}, forward + gradient"] = input_gradient(one, image)
    t = bench.times(**jobs)
    for name in list(variants)[1:]:
        for what in ("forward", "forward + gradient"):
            value = ratio(t[f"fp32 NCHW, {what}"], t[f"{name}, {what}"])
            yield Line(f"speed-up of {name}, {what}", value, note=f"over fp32 NCHW, batch 8, {millions(net)}")


def start_times(bench: Bench) -> Iterator[Line]:
    net, x, n, rng = small(), images(16), 10, Key(1).rng(16)
    steps = torch.tensor([1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 7, 8, 9, 10])
    each = Diffusion(EDM(net), VP(), SDE(dt=0.01), lambda x: 0.01 * steps, t_max=0.1)
    same = Diffusion(EDM(net), VP(), SDE(dt=0.01), 0.1)
    t = bench.times(each=no_grad(lambda: purify(each, x, rng)), same=no_grad(lambda: purify(same, x, rng)))
    share = float(steps.sum()) / (n * len(x))
    value = ratio(t["each"], t["same"])
    note = f"{value:.3f} of the time for {share:.3f} of the steps, batch 16, {millions(net)}"
    yield Line("a start time per sample / its share of steps", value / share, bar=1.05, note=note)


def lanes(bench: Bench) -> Iterator[Line]:
    """64 images, 16 at a time; t* as SSNI-N chooses it for clean images: t*·sigmoid of a standard normal."""
    net, x, rng = small(), images(64), Key(1).rng(64)

    def level(x: Tensor) -> Tensor:
        return 0.1 * torch.sigmoid((x.double().mean(dim=(1, 2, 3)) - 0.5) * math.sqrt(12 * x[0].numel()))

    each = Diffusion(EDM(net), VP(), SDE(dt=0.005), level, t_max=0.1)
    same = Diffusion(EDM(net), VP(), SDE(dt=0.005), 0.1)
    share = each.effort(each.init(x, rng)).sum().item() / (each.n_steps * len(x))
    how = Lanes(16)
    t = bench.times(
        each=no_grad(lambda: purify(each, x, rng, adjoint=how)), same=no_grad(lambda: purify(same, x, rng, adjoint=how))
    )
    value = ratio(t["each"], t["same"])
    note = f"{value:.3f} of the time for {share:.3f} of the steps, 64 images in lanes of 16, {millions(net)}"
    yield Line("lanes with SSNI's times / their share of steps", value / share, bar=1.1, note=note)


PARTS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "purification": purification,
    "gradients": gradients,
    "noise": noise,
    "loop": loop,
    "start-times": start_times,
    "lanes": lanes,
    "precision": precision,
    "cli": command_line,
}


def show(line: Line) -> None:
    verdict = "" if line.bar is None else f"≤ {line.bar:<5g} {'ok' if line.ok else 'MISS'}"
    print(f"{line.name:<48} {line.value:>9.3f} {line.unit:<2} {verdict:<13} {line.note}", flush=True)


def told(line: Line) -> list[str]:
    """A line of the page's table; what misses its bar is bold."""
    value, bar = f"{line.value:.3f} {line.unit}".removesuffix(" ×"), "" if line.bar is None else f"{line.bar:g}"
    return [line.name, value if line.ok else f"**{value}**", bar if line.ok else f"{bar}, missed"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--rounds", type=int, default=7, help="rounds after the one that warms up")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    bench = Bench(args.rounds, time.process_time if args.threads == 1 else time.perf_counter)
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "clock": "cpu" if args.threads == 1 else "wall",
        "load": round(os.getloadavg()[0], 2),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if machine["load"] > 0.5:
        print("Other jobs are running, which may matter: caches, clock rates and cores are shared.")
    lines = []
    for part in args.parts or PARTS:
        for line in PARTS[part](bench):
            show(line)
            lines.append(line)
    store.keep("results", {"speed": [store.Table(["what", "measured", "bar"], [told(line) for line in lines])]})
    missed = [line.name for line in lines if not line.ok]
    print(f"MISS: {'; '.join(missed)}" if missed else "Every bar is met.")
    if args.json:
        rows = [{**asdict(line), "ok": line.ok} for line in lines]
        args.json.write_text(json.dumps({"machine": machine, "lines": rows}, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
