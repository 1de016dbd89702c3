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
