"""What a truncated range of noise costs and saves: ``python -m benchmarks.truncation FOLDER``.

Trains the same denoiser on digits for noise up to several times t_max, for as many steps or for fewer (each run with
its whole schedule), and compares the errors at the noise levels that a purifier with t* = 0.1 meets.
"""

import sys
from pathlib import Path

from benchmarks import store
from benchmarks.digits_training import command
from lustral.shell import weights
from lustral.shell.images import data
from lustral.shell.trainer import measures

RUNS = [(1.0, 2000), (1.0, 4000), (0.3, 2000), (0.15, 2000), (0.1, 500), (0.1, 1000), (0.1, 2000)]
SIGMAS = (0.05, 0.1, 0.17)
"""The last is that of t* = 0.1."""


def row(folder: Path, t_max: float, steps: int) -> list[str]:
    """Trains a denoiser if it is not there yet, and measures it."""
    out = folder / f"t{t_max:g}-{steps}.safetensors"
    if not out.exists():
        command("train", "denoiser", str(out), f"--noise.t_max={t_max}", f"--recipe.steps={steps}")
    model, _ = weights.load(str(out), "denoiser")
    guide, _ = weights.load("digits-cnn", "classifier")
    test = data.load("digits", "test")
    errors = [f"{measures.rmse(model, test, sigma):.4f}" for sigma in SIGMAS]
    (clean,) = measures.purified(model, guide, test, len(test.ids)).values()
    return [f"{t_max:g}", f"{model.sigma_max:.2f}", str(steps), *errors, f"{100 * clean:.1f} %"]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    head = ["t_max", "largest sigma", "steps", *(f"RMSE at {sigma}" for sigma in SIGMAS), "clean accuracy"]
    found = store.Table(head, [row(place, *run) for run in RUNS])
    print(found)
    store.keep("truncated-noise", {"levels": [found]})
