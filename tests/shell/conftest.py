import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lustral.shell.cli import main


@pytest.fixture
def lustral(monkeypatch, tmp_path) -> Iterator[Callable[..., int]]:
    """Runs the command line in this process, in a folder of its own, and gives its exit code."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield lambda *args: main([str(arg) for arg in args])
    torch.set_num_threads(threads)


@pytest.fixture
def full_disk() -> Callable:
    """A block in which no file can grow beyond so many bytes: the system's own refusal, as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """All files below a folder with their content."""
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
