"""Networks in bfloat16: all of a system's, for attacker and judge alike, within rounding of float32."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from digits import system
from lustral.core.errors import UserError
from lustral.core.kernel import purify
from lustral.core.noise import Key
from lustral.denoisers.base import Autocast
from lustral.purifiers.adaptive import UnitField
from lustral.shell import commands, stored
from lustral.shell.images import data as datasets
from lustral.shell.options import Classification, Evaluation, Purification, Resources, Search, ThreatModel

METHODS = {
    "none": Purification(method="none"),
    "ddpm": Purification(solver="ddpm", steps=2),
    "adp": Purification(method="adp", steps=3),
    "agdm": Purification(method="agdm", solver="ddpm", steps=2),
    "ssni": Purification(solver="ddpm", steps=3, ssni="logistic", norm="single"),
}
ASKED = Evaluation(
    *("digits", 4, None, ["clean", "exact"], None, METHODS["ddpm"], Classification(), ThreatModel()),
    *(Search(steps=2, eot=1), 2, 0, 8),
)


@pytest.mark.parametrize("method", METHODS)
def test_every_network_rounds(method: str):
    """A verdict of about ten layers, each of which rounds by 2⁻⁹: as generous as for one network."""
    few = datasets.load("digits")[:8]
    full, short = (system("s", METHODS[method], precision=precision).defence for precision in ("float32", "bfloat16"))
    a, b = (defence.logits(few.x, Key(0).rng(few.ids)) for defence in (full, short))
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert (a - b).norm() < 0.1 * a.norm()


def test_adp_keeps_its_field_in_float32():
    """Its step is a difference over 1e-3, less than bfloat16 tells apart."""
    few = datasets.load("digits")[:8]
    full, short = (
        system("s", METHODS["adp"], precision=precision).defence.purifier for precision in ("float32", "bfloat16")
    )
    assert torch.equal(*(purify(purifier, few.x, Key(0).rng(few.ids)) for purifier in (full, short)))
    rounded = replace(full, field=UnitField(Autocast(full.field.denoiser), full.field.sigma))
    assert not torch.equal(*(purify(purifier, few.x, Key(0).rng(few.ids)) for purifier in (full, rounded)))


def test_float64_stays_exact():
    """Certificates measure gradients in float64, which nothing rounds."""
    few = datasets.load("digits")[:4]
    full, short = (
        system("s", METHODS["ddpm"], precision=precision).defence.double() for precision in ("float32", "bfloat16")
    )
    a, b = (defence.logits(few.x.double(), Key(0).rng(few.ids)) for defence in (full, short))
    assert torch.equal(a, b)


def test_a_run_says_its_precision_and_belongs_to_it(tmp_path: Path):
    found = commands.evaluate(replace(ASKED, precision="bfloat16"), tmp_path, Resources(), None, None, False)
    assert found["precision"] == "bfloat16"
    assert '<dt>Precision</dt><dd class="mono">bfloat16' in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert stored.read_json(tmp_path / "run.json", "options")["precision"] == "bfloat16"
    with pytest.raises(UserError, match=r"another run.*Autocast"):
        commands.evaluate(ASKED, tmp_path, Resources(), None, None, False)


def test_purify_and_attack_round_likewise(lustral):
    np.save("in.npy", datasets.load("digits")[:4].x.numpy())
    small = ["--purification.solver=ddpm", "--purification.steps=2", "--seed=0"]
    searched = [*small, "--images=4", "--search.steps=1", "--search.eot=1"]
    for precision in ("float32", "bfloat16"):
        assert lustral("purify", "in.npy", f"{precision}.npy", *small, f"--precision={precision}") == 0
        assert lustral("attack", f"{precision}.npz", *searched, f"--precision={precision}") == 0
    full, short = np.load("float32.npy"), np.load("bfloat16.npy")
    assert 0 < np.abs(full - short).max() < 0.1
    full, short = np.load("float32.npz")["x"], np.load("bfloat16.npz")["x"]
    assert (full != short).any()
