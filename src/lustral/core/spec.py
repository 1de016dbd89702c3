"""What an object is, as canonical JSON and as a digest.

Frozen dataclasses describe themselves: their fields are the schema. A field's role, in ``metadata={"role": ...}``, is
``identity`` (the default: it can change a result), ``weights`` (so can it; described by a hash) or ``runtime`` (it
cannot: batch sizes, memory budgets, devices), which leaves it out of the digest.
"""

import dataclasses
import hashlib
import json
import weakref
from collections.abc import Mapping
from functools import partial
from inspect import isfunction
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

ROLES = ("identity", "weights", "runtime")
_weights: "weakref.WeakKeyDictionary[nn.Module, tuple[tuple, str]]" = weakref.WeakKeyDictionary()


def role(field: dataclasses.Field) -> str:
    """The role of a dataclass field: identity, weights or runtime."""
    return field.metadata.get("role", "identity")


def runtime(default: Any) -> Any:
    """A dataclass field that cannot change a result."""
    return dataclasses.field(default=default, metadata={"role": "runtime"})


def spec(obj: Any) -> Any:
    """A JSON-ready description of everything in ``obj`` that can change a result."""
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, float):
        return obj if obj == obj and abs(obj) != float("inf") else str(obj)
    if isinstance(obj, Tensor):
        return {"shape": list(obj.shape), "dtype": str(obj.dtype), "sha256": _sha256([obj])}
    if isinstance(obj, Mapping):
        return {str(key): spec(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [spec(value) for value in obj]
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = {f.name: spec(getattr(obj, f.name)) for f in dataclasses.fields(obj) if role(f) != "runtime"}
        return {"type": _name(type(obj)), **fields}
    if isinstance(obj, nn.Module):
        return {"type": _name(type(obj)), "sha256": weights_sha256(obj)}
    if isinstance(obj, partial):
        return {"type": "functools.partial", "function": spec(obj.func), "given": spec([*obj.args, obj.keywords])}
    if isfunction(obj) and "<" in obj.__qualname__:  # a lambda or a closure: its name does not say what it does
        cells = [spec(cell.cell_contents) for cell in obj.__closure__ or ()]
        return {"type": _name(obj), "code": _code(obj.__code__), "given": [*cells, spec(obj.__defaults__)]}
    return {"type": _name(obj if callable(obj) and hasattr(obj, "__qualname__") else type(obj))}


def _code(code: CodeType) -> str:
    """A hash of what a function's code does."""
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return hashlib.sha256(repr((code.co_code, constants, code.co_names)).encode()).hexdigest()


def canonical(obj: Any) -> str:
    """The one JSON text of a spec: sorted keys, no spaces."""
    return json.dumps(spec(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(obj: Any) -> str:
    """32 hexadecimal digits that name everything in ``obj`` that can change a result."""
    return hashlib.sha256(canonical(obj).encode()).hexdigest()[:32]


def weights_sha256(module: nn.Module) -> str:
    """The hash of a module's structure (its printed form), plain attributes, parameters and buffers, by name."""
    state = module.state_dict()
    text = repr(module) + canonical(_settings(module))
    versions = text, tuple((t.data_ptr(), t._version) for t in state.values())
    cached = _weights.get(module)
    if cached is None or cached[0] != versions:
        text += "".join(f"{name}:{tuple(t.shape)};" for name, t in state.items())
        cached = versions, hashlib.sha256((text + _sha256(state.values())).encode()).hexdigest()
        _weights[module] = cached
    return cached[1]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two specs differ, one line each, as ``path: left → right``."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = sorted(a.keys() | b.keys())
        return [line for k in keys for line in differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {json.dumps(a)[:80]} → {json.dumps(b)[:80]}"]


def _settings(module: nn.Module) -> dict[str, Any]:
    """The numbers, texts and dataclasses that a module and its parts hold as attributes; torch's own print theirs."""
    found = {}
    for place, part in module.named_modules():
        if not type(part).__module__.startswith("torch.nn."):
            for name, value in vars(part).items():
                plain = isinstance(value, bool | int | float | str | tuple | list) or dataclasses.is_dataclass(value)
                if plain and name != "training" and not name.startswith("_"):
                    found[f"{place}.{name}"] = value
    return found


def _sha256(tensors) -> str:
    h = hashlib.sha256()
    for t in tensors:
        h.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
