"""Memory that a training keeps."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from lustral.shell import memory
{keep}
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(2**24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: str) -> int:
    """Pages that the system gives while a large tensor is freed and made 20 times, after as many to settle."""
    program = [sys.executable, "-c", FAULTS.format(keep=keep)]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is asked to keep memory")
def test_the_system_gives_pages_once():
    assert faults("memory.keep()") < 100 < faults("")


HOLES = """
import torch
from lustral.shell import memory
pages = lambda: int(open("/proc/self/statm").read().split()[1])
small = [torch.ones(2**17) for _ in range(400)]  # 0.5 MB each, side by side
before = pages()
del small[::2]
memory.give_back()
print((before - pages()) * 4096 / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is asked to give memory back")
def test_holes_go_back_to_the_system():
    """100 MB lie between tensors that are still in use."""
    program = "import ctypes; ctypes.CDLL(None).mallopt(-4, 0)" + HOLES  # no block of its own for any of them
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(found) > 90
