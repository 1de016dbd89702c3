import subprocess
import sys

import pytest

MEASURE = """
import sys

import torch

from lustral.core.adjoint import Checkpointed, Direct
from lustral.core.kernel import purify
from lustral.denoisers.nets.unet import UNet
from lustral.denoisers.preconditioning import EDM
from lustral.purifiers.presets import diffpure


def megabytes(name: str) -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1024


def gradient(rows: int, steps: int) -> None:
    x = torch.full((rows, 3, 32, 32), 0.5, requires_grad=True)
    purify(diffpure(net, steps=steps), x, 0, adjoint=adjoint).sum().backward()


torch.set_num_threads(1)
net = EDM(UNet(channels=3, width=16, mult=(1,), blocks=2)).requires_grad_(False)
adjoint, steps = {"direct": Direct(), "checkpointed": Checkpointed()}[sys.argv[1]], int(sys.argv[2])
gradient(rows=1, steps=1)  # libraries load and allocators settle
before = megabytes("VmRSS")
gradient(rows=8, steps=steps)
print(megabytes("VmHWM") - before)
"""


def peak(adjoint: str, steps: int) -> float:
    """Megabytes that a gradient adds to a fresh process at its peak."""
    command = [sys.executable, "-c", MEASURE, adjoint, str(steps)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_exact_gradient_of_100_steps_needs_the_memory_of_one_step_and_100_images():
    images = 8 * 3 * 32 * 32 * 4 / 2**20
    few, many = peak("checkpointed", 5), peak("checkpointed", 100)
    assert many < 1.3 * few + 100 * images
    assert peak("direct", 5) > 3 * few, "the graph of a step is too small here to show anything"
