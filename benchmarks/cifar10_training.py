"""The networks for CIFAR-10, each on one core, from the folder that `lustral data cifar10` made.

python -m benchmarks.cifar10_training FOLDER [NAME …]

Trains what is not there yet, all or those that are named, measures what SSNI asks of clean images, and prints what the
trainings took. Interrupted, it goes on where it stopped. Networks that others start from or are guided by come first in
the list.
"""

import csv
import sys
from pathlib import Path

from benchmarks import store, trainings
from lustral.shell import weights

# Two to three times as fast as float32 on a CPU that computes in bfloat16, and slower than it on one that does not.
COMMON = " --data=cifar10 --recipe.flip=true --recipe.precision=bfloat16 --threads=1"
FIT = " --split=fit"  # leaves the validation images out, on which settings are tuned
SGD = " --recipe.optimiser=sgd --recipe.weight_decay=1e-3 --recipe.schedule=linear --recipe.warmup=0.2 --recipe.clip=0"
SGD += " --recipe.batch=128 --recipe.crop=3 --recipe.channels_last=true" + COMMON
HALF = " --recipe.stored=float16"
LAYOUT = " --recipe.batch=64 --recipe.channels_last=true"
DENOISER = FIT + COMMON + HALF + " --network.width=64 --recipe.lr=1.5e-3 --recipe.ema=0.9995 --recipe.compile=true"
TRUNCATED = "denoiser --noise.objective=edm --noise.t_max=0.15 --network.blocks=2 --network.normalised=false"
TRUNCATED += DENOISER + LAYOUT
# A network that is not told the noise needs normalisation: its output is as large at every level.
FIELD = "denoiser --noise.objective=dsm --noise.t_max=0.2 --recipe.batch=64" + DENOISER
# ADDT's optimiser and average, for all that start from the same denoiser, as for digits.
TUNED = FIT + COMMON + HALF + LAYOUT + " --network.start=FOLDER/cifar10-unet.safetensors --noise.t_max=0.15"
TUNED += " --recipe.lr=2e-4 --recipe.ema_power=0.75 --recipe.ema=0.9999 --recipe.weight_decay=1e-6 --recipe.beta1=0.95"
TUNED += " --recipe.schedule=constant --recipe.steps=600"
EPS = f" --adversary.eps={8 / 255}"
GUIDED = TUNED + EPS + " --adversary.guide=FOLDER/cifar10-whitened.safetensors"
COMMANDS = {
    "cifar10-whitened": "classifier --network.kind=whitened --network.activation=gelu --network.mirror=true"
    " --smoothing=0.2 --recipe.lr=0.1 --recipe.steps=9360 --check_every=1560" + SGD + HALF,
    "cifar10-resnet": "classifier --network.kind=resnet --network.width=32 --network.activation=gelu --smoothing=0.1"
    " --recipe.lr=0.1 --recipe.steps=5850" + SGD + FIT + HALF,
    "cifar10-trades": "trades --network.kind=resnet --network.width=24 --network.activation=silu --adversary.steps=3"
    " --recipe.lr=0.05 --recipe.steps=4680" + EPS + SGD + FIT + HALF,
    "cifar10-unet": TRUNCATED + " --recipe.steps=24000 --check_every=3000",
    "cifar10-field": FIELD + " --recipe.steps=12000 --check_every=3000",
    "cifar10-unet-6000": TRUNCATED + " --recipe.steps=6000",
    "cifar10-unet-1500": TRUNCATED + " --recipe.steps=1500",
    "cifar10-longer": "denoiser" + TUNED,
    "cifar10-addt": "addt" + GUIDED,
    "cifar10-adbm": "adbm" + GUIDED,
}
TRAININGS = {name: command.split() for name, command in COMMANDS.items()}
SSNI = "cifar10-unet"
"""The denoiser that SSNI's rows use: its card needs the score norms of clean images."""


def refer(place: Path) -> None:
    """Measures them, where the card does not have them yet."""
    path = place / f"{SSNI}.safetensors"
    if not any(name.startswith("score_norm") for name in weights.card(path).measured):
        trainings.command("reference", str(path))


def checks(path: Path) -> store.Table:
    """What was measured on the way, of a log of ``lustral train``."""
    with open(path, encoding="utf-8") as f:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(f)]
    head = [name.replace("rmse_at_", "RMSE at ").replace("step", "steps") for name in rows[0]]
    lines = [[f"{row.pop('step'):.0f}", *(f"{value:.4f}" for value in row.values())] for row in rows]
    return store.Table(head, lines)


if __name__ == "__main__":
    place, names = Path(sys.argv[1]), sys.argv[2:]
    if unknown := set(names) - set(TRAININGS):
        sys.exit(f"There is no training {', '.join(sorted(unknown))}; choose from {', '.join(TRAININGS)}.")
    chosen = {name: TRAININGS[name] for name in names or TRAININGS}
    trainings.train(chosen, place)
    if SSNI in chosen:
        refer(place)
    print(trainings.summary(chosen, place))
    logs = {name: place / f"{name}-checks.csv" for name in chosen}
    store.keep("cifar10-training", {name: [checks(path)] for name, path in logs.items() if path.exists()})
