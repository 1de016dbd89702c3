"""What a lack of memory looks like: torch, its allocators and its libraries each say it in their own way."""

import re

import torch

FAILURES = RuntimeError, MemoryError
"""Classes of errors among which a lack of memory is."""

SAID = re.compile(
    r"out of memory|(can't|cannot|unable to|failed to|could not) allocate|not enough memory|bad_alloc|alloc_failed"
    r"|could not create a (primitive|memory)",  # oneDNN's, which has no other word for it
    re.IGNORECASE,
)


def lacking(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on a GPU or a CPU."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and SAID.search(str(error)) is not None)
