"""What an object is, as canonical JSON and as a digest.

Frozen dataclasses describe themselves: their fields are the schema. A field's role, in ``metadata={"role": ...}``, is
``identity`` (the default: it can change a result), ``weights`` (so can it; described by a hash) or ``runtime`` (it
cannot: batch sizes, memory budgets, devices), which leaves it out of the digest.

What is a user's own and has no schema is described as far as Python shows it: a function by its code and all that it
refers to, a plain object by its attributes (not by the code of its class). What is installed, or Lustral's own, goes by
its name.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from functools import partial
from inspect import isfunction, ismethod, ismodule
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PRINTED = (bytes, range, slice, complex, torch.dtype, torch.device)
"""Values that are what they print; so are paths, which ``core`` need not know."""
ROLES = ("identity", "weights", "runtime")


def role(field: dataclasses.Field) -> str:
    """The role of a dataclass field: identity, weights or runtime."""
    return field.metadata.get("role", "identity")


def runtime(default: Any) -> Any:
    """A dataclass field that cannot change a result."""
    return dataclasses.field(default=default, metadata={"role": "runtime"})


def spec(obj: Any, seen: set[int] | None = None) -> Any:
    """A JSON-ready description of everything in ``obj`` that can change a result.

    Functions and plain objects that were ``seen`` on the way are not described again.
    """
    seen = set() if seen is None else seen
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, float):
        return obj if obj == obj and abs(obj) != float("inf") else str(obj)
    if isinstance(obj, Tensor):
        return {"shape": list(obj.shape), "dtype": str(obj.dtype), "sha256": _sha256([obj])}
    if isinstance(obj, Mapping):
        return {str(key): spec(value, seen) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [spec(value, seen) for value in obj]
    if isinstance(obj, set | frozenset):
        return sorted((spec(value, seen) for value in obj), key=lambda made: json.dumps(made, sort_keys=True))
    if isinstance(obj, PRINTED) or type(obj).__module__.partition(".")[0] == "pathlib":
        return {"type": _name(type(obj)), "value": repr(obj)}
    if isinstance(obj, np.generic) or (isinstance(obj, np.ndarray) and obj.dtype == object):
        return spec(obj.tolist(), seen)
    if isinstance(obj, np.ndarray):
        return spec(torch.from_numpy(np.ascontiguousarray(obj).view(np.uint8)), seen) | {"dtype": str(obj.dtype)}
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = {f.name: spec(getattr(obj, f.name), seen) for f in dataclasses.fields(obj) if role(f) != "runtime"}
        return {"type": _name(type(obj)), **fields}
    if isinstance(obj, nn.Module):
        made = {"type": _name(type(obj))}
        return made if id(obj) in seen else made | {"sha256": _module_sha256(obj, seen)}
    if isinstance(obj, partial):
        given = spec([*obj.args, obj.keywords], seen)
        return {"type": "functools.partial", "function": spec(obj.func, seen), "given": given}
    if isfunction(obj):
        return _function(obj, seen)
    if ismethod(obj):
        return {"type": _name(obj), "self": spec(obj.__self__, seen)}
    if ismodule(obj):
        return {"type": obj.__name__}
    if isinstance(obj, type) or hasattr(obj, "__qualname__"):
        return {"type": _name(obj)}
    return _plain(obj, seen)


def _function(function: FunctionType, seen: set[int]) -> dict:
    """A function that is installed by its name, where it has one; others by their code and all that it refers to."""
    made, own = {"type": _name(function)}, not _installed(function.__module__, function.__code__.co_filename)
    if id(function) in seen or not (own or "<" in function.__qualname__):
        return made
    seen.add(id(function))
    cells = [spec(cell.cell_contents, seen) for cell in function.__closure__ or ()]
    defaults = spec([function.__defaults__, function.__kwdefaults__], seen)
    made |= {"code": _code(function.__code__), "given": [*cells, *defaults]}
    known = function.__globals__
    names = sorted(_names(function.__code__) & known.keys()) if own else []
    return made | ({"globals": {name: spec(known[name], seen) for name in names}} if names else {})


def _plain(obj: Any, seen: set[int]) -> dict:
    """An object that describes itself neither as a dataclass nor as a module: its attributes, if it is a user's own."""
    made, module = {"type": _name(type(obj))}, sys.modules[type(obj).__module__]
    if id(obj) in seen or _installed(module.__name__, getattr(module, "__file__", None)):
        return made
    seen.add(id(obj))
    slots = [name for kind in type(obj).__mro__ for name in _slots(kind) if hasattr(obj, name)]
    held = {name: getattr(obj, name) for name in slots} | getattr(obj, "__dict__", {})
    return made | {name: spec(value, seen) for name, value in held.items()}


def _slots(kind: type) -> list[str]:
    """The attributes that a class declares to have in place of a dictionary, under the names that they are found by."""
    given = kind.__dict__.get("__slots__", ())
    named = [given] if isinstance(given, str) else list(given)
    private = f"_{kind.__name__.lstrip('_')}"
    found = [private + name if name.startswith("__") and not name.endswith("__") else name for name in named]
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _installed(module: str | None, file: str | None) -> bool:
    """Whether code belongs to Lustral, to Python or to a library, and not to the user."""
    if (module or "").partition(".")[0] in {"lustral", *sys.stdlib_module_names} - {"__main__"}:
        return True
    return "site-packages" in (file or "") or "dist-packages" in (file or "")


def _names(code: CodeType) -> set[str]:
    """The names that code looks up, in itself and in what it defines."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _code(code: CodeType) -> str:
    """A hash of what a function's code does."""
    constants = [_constant(c) for c in code.co_consts]
    return hashlib.sha256(repr((code.co_code, constants, code.co_names)).encode()).hexdigest()


def _constant(value: Any) -> str:
    """A constant of code; the order of a set is another in every process."""
    if isinstance(value, CodeType):
        return _code(value)
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def canonical(obj: Any) -> str:
    """The one JSON text of a spec: sorted keys, no spaces."""
    return json.dumps(spec(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(obj: Any) -> str:
    """32 hexadecimal digits that name everything in ``obj`` that can change a result."""
    return hashlib.sha256(canonical(obj).encode()).hexdigest()[:32]


def _module_sha256(module: nn.Module, seen: set[int]) -> str:
    """The hash of a module's structure (its printed form), attributes, parameters and buffers, by name.

    A part that refers to the module itself does not describe it again.
    """
    settings = spec(_settings(module), seen | {id(module)})
    tensors = module.state_dict() | dict(module.named_buffers())  # which has those that are not saved too
    text = repr(module) + json.dumps(settings, sort_keys=True, separators=(",", ":"))
    text += "".join(f"{name}:{tuple(t.shape)};" for name, t in tensors.items())
    return hashlib.sha256((text + _sha256(tensors.values())).encode()).hexdigest()


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two specs differ, one line each, as ``path: left → right``."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = sorted(a.keys() | b.keys())
        return [line for k in keys for line in differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {json.dumps(a)[:80]} → {json.dumps(b)[:80]}"]


RUNTIME = {"lanes", "_key", "_calls", "_secret", "_repeats", "_looked", *vars(nn.Module())}
"""Attributes of modules that change no result (a defence may compute fewer rows at a time), or are described apart."""
COMPLETE = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.Embedding),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm, nn.Dropout, nn.Identity, nn.Flatten),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.MaxPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Sequential, nn.ModuleList, nn.ModuleDict),
)
PRINTED_MODULES = {kind: {} for kind in COMPLETE} | {
    nn.AvgPool2d: {"count_include_pad": True, "divisor_override": None, "ceil_mode": False},
    nn.Upsample: {"align_corners": None, "recompute_scale_factor": None},
}
"""torch's modules that print what they are, and what they leave out with its usual value; others are told in full."""


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module and its parts hold as attributes, but for None, and the code of their hooks."""
    found = {}
    for place, part in module.named_modules():
        left = PRINTED_MODULES.get(type(part))
        for name, value in vars(part).items():
            if left is None:  # what is private and no plain value may be a cache
                plain = not name.startswith("_") or isinstance(value, bool | int | float | str)
                told = plain and name not in RUNTIME and value is not None
            else:
                told = name in left and value != left[name]
            found |= {f"{place}.{name}": value} if told else {}
        hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
        own = [hook for hook in hooks if not getattr(hook, "__module__", "").startswith("lustral.")]
        codes = [_code(hook.__code__) if isfunction(hook) else _name(type(hook)) for hook in own]
        found |= {f"{place} hooks": codes} if own else {}  # what they hold may be what they have seen
    return found


def _sha256(tensors) -> str:
    h = hashlib.sha256()
    for t in tensors:
        h.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
