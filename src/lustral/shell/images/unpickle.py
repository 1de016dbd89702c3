"""The pickles of CIFAR's Python archives, read without running what they name.

A pickle is a program that may call anything it can name. Here it can name only stand-ins of our own, which note the
bytes, the shape and the type of an array; NumPy's own reconstruction is not called either.
"""

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from ...core.errors import UserError


class _Refused(Exception):
    """The pickle names something that no array needs."""


class _Array:
    """What a pickle says of an array."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.columns_first, self.content = state

    def array(self) -> np.ndarray:
        if not isinstance(self.dtype, _Type) or self.dtype.name not in ("u1", b"u1"):
            raise ValueError("not 8-bit")
        if not isinstance(self.content, bytes | bytearray) or math.prod(self.shape) != len(self.content):
            raise ValueError("another size")
        return np.frombuffer(self.content, np.uint8).reshape(self.shape, order="F" if self.columns_first else "C")


class _Type:
    """What a pickle says of a dtype."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which 8-bit numbers do not have."""


def _from_buffer(content: bytes, dtype: Any, shape: tuple, order: str) -> _Array:
    found = _Array()
    found.__setstate__((1, shape, dtype, order == "F", content))
    return found


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"the encoding {encoding}")
    return text.encode("latin-1")


ADMITTED: dict[tuple[str, str], Callable] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}
for _module in ("numpy.core", "numpy._core"):
    ADMITTED[f"{_module}.multiarray", "_reconstruct"] = lambda *_: _Array()
    ADMITTED[f"{_module}.numeric", "_frombuffer"] = _from_buffer


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in ADMITTED:
            raise _Refused(f"{module}.{name}")
        admitted = ADMITTED[module, name]
        # A fresh function each time, so that a pickle that sets attributes on it changes nothing of ours.
        return admitted if isinstance(admitted, type) else lambda *args: admitted(*args)


def read(content: bytes, name: str) -> dict[str, Any]:
    """The dictionary in a pickle of Python 2 or 3, its keys as text and its 8-bit arrays as arrays."""
    try:
        found = _Reader(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise ValueError("no dictionary")
        text = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
        return {key: value.array() if isinstance(value, _Array) else value for key, value in text.items()}
    except _Refused as e:
        raise UserError(
            f"{name} is a pickle that asks for {e}, which no array needs, so it was not loaded; "
            "fetch the published file."
        ) from e
    except Exception as e:
        raise UserError(f"{name} is damaged or no batch of CIFAR images; fetch it again.") from e
