"""DDPM, ADDT, ADBM, PGD-AT and TRADES on digits, trained from scratch and put through the standard suite.

python -m benchmarks.digits_training FOLDER

Trains what is not there yet, evaluates all systems in one run, and prints the trainings, the suite's table and the
paired tests. ADDT and ADBM stand against the DDPM that they start from, and against the same DDPM trained on without an
adversary (ddpm-longer), since fine-tuning alone changes a network too. Interrupted, it goes on where it stopped.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import tables

NOISE = ["--noise.objective=ddpm", "--noise.t_max=0.3"]
TUNED = [*NOISE, "--network.start=FOLDER/ddpm.safetensors", "--recipe.schedule=constant", "--recipe.shift=0.5"]
# ADDT's optimiser and average, for all alike, so that they differ in the objective alone.
TUNED += ["--recipe.lr=2e-4", "--recipe.ema_power=0.75", "--recipe.ema=0.9999", "--recipe.weight_decay=1e-6"]
TUNED += ["--recipe.beta1=0.95", "--recipe.steps=1000"]
TRAININGS = {
    "ddpm": ["denoiser", *NOISE, "--network.width=24", "--recipe.steps=5000", "--recipe.shift=0.5"],
    "ddpm-longer": ["denoiser", *TUNED],
    "addt": ["addt", *TUNED],
    "adbm": ["adbm", *TUNED],
    "pgd-at": ["pgd-at", "--recipe.steps=2500", "--recipe.shift=0.5"],
    "trades": ["trades", "--recipe.steps=2000", "--recipe.shift=0.5"],
}
CONFIG = Path(__file__).parents[1] / "docs/results/digits-training.yaml"


def command(*arguments: str) -> None:
    """Runs a command as a person would, so that cards say how to make them again."""
    if code := subprocess.run([sys.executable, "-m", "lustral", *arguments]).returncode:
        sys.exit(code)


def train(folder: Path) -> None:
    """Every network that is not there yet."""
    for name, (task, *options) in TRAININGS.items():
        out = folder / f"{name}.safetensors"
        if not out.exists():
            arguments = [option.replace("FOLDER", str(folder)) for option in options]
            command("train", task, str(out), *arguments)


def evaluate(folder: Path) -> dict:
    """The standard suite over all of them; the configuration is written out beside the run."""
    config = folder / "suite.yaml"
    config.write_text(CONFIG.read_text(encoding="utf-8").replace("FOLDER", str(folder)), encoding="utf-8")
    command("evaluate", str(folder / "run"), f"--config={config}", "--resources.batch=8")
    return json.loads((folder / "run/results.json").read_text(encoding="utf-8"))


def trainings(folder: Path) -> str:
    """Steps, minutes and test measurements of every training, from its log and its card."""
    rows = []
    for name in TRAININGS:
        card = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        with open(folder / f"{name}.csv", encoding="utf-8") as f:
            log = [{column: float(value) for column, value in row.items()} for row in csv.DictReader(f)]
        batch, every = card["recipe"]["batch"], log[0]["step"]
        took = sum(every * batch / row["images_per_second"] for row in log)
        measured = ", ".join(f"{key.removeprefix('test_')} {value:.4g}" for key, value in card["measured"].items())
        rows.append([name, f"{log[-1]['step']:.0f} of {batch}", f"{took / 60:.1f}", measured])
    return tables.table(["network", "steps", "minutes", "on test images"], rows)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    train(place)
    results = evaluate(place)
    print(trainings(place), tables.main_table(results), tables.pairs(results), sep="\n\n")
