"""Networks on another device. A machine without one has cpu:0, which goes the same way and is the same processor."""

from functools import partial
from pathlib import Path

import pytest
import torch

from digits import system
from lustral.attacks.apgd import APGD
from lustral.attacks.gradients import exact
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.core.threat import Linf
from lustral.evaluate.protocol import Data, System
from lustral.shell import build, commands, comparison, detect, review
from lustral.shell.device import OnDevice
from lustral.shell.images import data as datasets
from lustral.shell.options import Classification, Evaluation, Purification, Resources, Search, ThreatModel
from lustral.shell.plan import make

METHODS = {
    "none": Purification(method="none"),
    "diffpure": Purification(solver="ddpm", steps=2),
    "agdm": Purification(method="agdm", solver="ddpm", steps=2),
    "ssni": Purification(solver="ddpm", steps=3, ssni="logistic", norm="single"),
}


@pytest.fixture(scope="module")
def few() -> Data:
    return datasets.load("digits")[:4]


def options(purification: Purification) -> Evaluation:
    asked = "digits", 2, None, ["clean"], None, purification, Classification(), ThreatModel(), Search()
    return Evaluation(*asked, draws=2, seed=0, micro_batch=4)


def candidates(system: System, few: Data) -> torch.Tensor:
    return APGD(Linf(0.2), exact(), steps=3).run(system.defence, few.x, few.y, Key(0).rng(few.ids)).x


@pytest.mark.parametrize("method", METHODS)
def test_every_network_of_a_system_goes_there_and_its_attack_is_the_same(method: str, few: Data):
    here, there = (system("s", METHODS[method], Classification(), 4, device) for device in ("cpu", "cpu:0"))
    assert torch.equal(candidates(here, few), candidates(there, few))


class Elsewhere(torch.nn.Linear):
    """Answers with zeros on the images' own device; what it was asked, and where it lies, can be seen."""

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        self.seen = [a.device.type for a in args]
        return torch.zeros(2)


def test_network_and_images_meet_on_the_device():
    network = Elsewhere(2, 2)
    out = OnDevice(network, "meta")(torch.zeros(2), torch.zeros(2))
    assert [network.weight.device.type, *network.seen] == ["meta"] * 3
    assert out.device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_agrees_within_rounding(method: str, few: Data):
    here, there = (system("s", METHODS[method], Classification(), 4, device) for device in ("cpu", "cuda"))
    rng = Key(1).rng(few.ids)
    torch.testing.assert_close(there.defence.logits(few.x, rng), here.defence.logits(few.x, rng), rtol=1e-3, atol=1e-3)
    assert candidates(there, few).device.type == "cpu"


def test_a_run_belongs_to_its_device(tmp_path: Path):
    run = partial(commands.evaluate, options(METHODS["diffpure"]), tmp_path)
    run(Resources(), None, None, False)
    with pytest.raises(UserError, match=r"another run.*OnDevice"):
        run(Resources(device="cpu:0"), None, None, False)


def test_what_another_device_found_is_read_here(tmp_path: Path):
    """Merged, compared and told apart; to run it again takes the device."""
    asked, there = options(METHODS["diffpure"]), Resources(device="cpu:0")
    for k in (1, 2):
        commands.evaluate(asked, tmp_path / f"part{k}", there, f"{k}/2", None, False)
    assert commands.merge(tmp_path / "all", [tmp_path / "part1", tmp_path / "part2"], False)["rows"][0]["images"] == 2
    assert comparison.runs(tmp_path / "all", tmp_path / "all")[0]["difference"] == [0, 0, 0]
    with pytest.raises(UserError, match="holds no attacked images"):
        detect.run(tmp_path / "all", "digits-unet", "field", 0.25)
    assert "equal to the bit" in review.verify(tmp_path / "all", 1, there)
    with pytest.raises(UserError, match="cannot be run again as it was.*cpu:0"):
        review.verify(tmp_path / "all", 1, Resources())


def test_a_device_that_is_not_here_is_refused():
    for device in ("nonsense", "cuda:99", "meta"):
        with pytest.raises(UserError, match=f"no device '{device}' here"):
            build.prepare(Resources(device=device))


def test_plans_put_their_systems_there():
    planned = make(options(METHODS["diffpure"]), Resources(device="cpu:0"))
    assert planned.systems[0].defence.classifier.inner.device == "cpu:0"
