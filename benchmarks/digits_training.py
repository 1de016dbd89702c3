"""DDPM, ADDT, ADBM, PGD-AT and TRADES on digits, trained from scratch and put through the standard suite.

python -m benchmarks.digits_training FOLDER

Trains what is not there yet, evaluates all systems in one run, and prints the trainings, the suite's table and the
paired tests. ADDT and ADBM stand against the DDPM that they start from, and against the same DDPM trained on without an
adversary (ddpm-longer), since fine-tuning alone changes a network too. Interrupted, it goes on where it stopped.
"""

import json
import sys
from pathlib import Path

from benchmarks import store, tables, trainings

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


def evaluate(folder: Path) -> dict:
    """The standard suite over all of them; the configuration is written out beside the run."""
    config = folder / "suite.yaml"
    config.write_text(CONFIG.read_text(encoding="utf-8").replace("FOLDER", str(folder)), encoding="utf-8")
    trainings.command("evaluate", str(folder / "run"), f"--config={config}", "--resources.batch=16")
    return json.loads((folder / "run/results.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    trainings.train(TRAININGS, place)
    results = evaluate(place)
    made = {"trainings": [trainings.summary(TRAININGS, place)]} | tables.chosen(results, ["main", "pairs"])
    print(*map(store.text, made.values()), sep="\n\n")
    store.keep("digits-training", made)
