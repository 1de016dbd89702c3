"""Networks inside other objects, and the mode that they are in: what is shown of them must not depend on it."""

import dis
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from inspect import isfunction, ismethod, ismodule
from types import CodeType, FunctionType

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from . import memory
from .errors import UserError
from .generators import stands, untouched
from .noise import replaying

_unseen: ContextVar[bool] = ContextVar("lustral_aside", default=False)


class Modeless(nn.Module):
    """A module that has no mode and hands none on: its networks are shown as they are, whoever switches modes."""

    def __init__(self):
        super().__init__()
        self.training = False

    def train(self, mode: bool = True) -> "Modeless":
        """Changes nothing; the mode of a network behind it is switched on that network."""
        return self


def modules_in(obj: object) -> list[nn.Module]:
    """The torch modules inside an object's fields, so that ``.to(device)`` on a defence reaches them."""
    found: list[nn.Module] = []
    todo, seen = [obj], set()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            found.append(item)
        elif isinstance(item, tuple | list):
            todo.extend(item)
        elif isinstance(getattr(item, "__dataclass_fields__", None), dict):
            todo.extend(getattr(item, name) for name in item.__dataclass_fields__)
    return found


def reachable(*things: object) -> Iterator[object]:
    """The objects themselves and all that they hold: attributes, parts, what functions close over and refer to."""
    todo, seen = list(things), []
    known: set[int] = set()
    while todo:
        item = todo.pop()
        if id(item) in known or isinstance(item, str | bytes | int | float | Tensor | type) or ismodule(item):
            continue
        known.add(id(item))
        seen.append(item)  # while it is held, its id is no other's
        yield item
        todo.extend(_held(item))


def _held(item: object) -> Iterable[object]:
    if isinstance(item, tuple | list | set | frozenset):
        return item
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, partial):
        return item.func, *item.args, *item.keywords.values()
    if isinstance(item, property):
        return (item.fget,)
    if ismethod(item):
        return item.__self__, item.__func__
    if isfunction(item):
        return _referred(item)
    if isinstance(item, nn.Module) and _home(type(item).__module__) == "torch":
        return list(item.children())
    return [] if _home(type(item).__module__) in KEPT - {"lustral"} else _attributes(item)


def _home(module: str | None) -> str:
    return (module or "").partition(".")[0]


KEPT = {"torch", "numpy", "lustral", *sys.stdlib_module_names} - {"__main__"}
"""Packages whose code holds no network of a user's."""


def _attributes(item: object) -> list[object]:
    """What an object holds, and what its class's code refers to where that is a user's."""
    slots = [name for kind in type(item).__mro__ for name in vars(kind).get("__slots__", ())]
    held = [getattr(item, name, None) for name in slots] + list(getattr(item, "__dict__", {}).values())
    own = [kind for kind in type(item).__mro__ if _home(kind.__module__) not in KEPT]
    code = [part for kind in own for part in vars(kind).values() if isfunction(part) or isinstance(part, property)]
    return held + code


def _referred(function: FunctionType) -> list[object]:
    """What a function closes over, its defaults, and where it is a user's the globals that it loads."""
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that is still empty
            held.append(cell.cell_contents)
    file = function.__code__.co_filename
    if _home(function.__module__) in KEPT or "site-packages" in file or "dist-packages" in file:
        return held
    known = function.__globals__
    return held + [known[name] for name in _loaded(function.__code__) if name in known]


def _loaded(code: CodeType) -> set[str]:
    """The globals that code loads, in itself and in what it defines."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return own.union(*(_loaded(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def weights(*things: object) -> Iterator[nn.Parameter]:
    """The floating point parameters of all networks that can be reached."""
    return _weights(thing for thing in reachable(*things) if isinstance(thing, nn.Module))


def _weights(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    return (p for module in modules for p in module.parameters(recurse=False) if p.is_floating_point())


class Networks:
    """The networks behind something: what their mode may change, and in which precision they compute.

    ``foreign`` says whether any code behind it is neither torch's nor Lustral's own.
    """

    def __init__(self, *things: object):
        found = list(reachable(*things))
        modules = [thing for thing in found if isinstance(thing, nn.Module)]
        self._modules = [module for module in modules if _own(module) or _random_or_of_the_batch(module)]
        self._weight = next(_weights(modules), None)
        self.foreign = any(_own(thing) for thing in found)

    def cast(self, x: Tensor) -> Tensor:
        """Images in the networks' precision; where there are none, in float32 or float64."""
        if self._weight is not None:
            return x.to(self._weight.dtype)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def refuse(self) -> None:
        """Refuses dropout and batch normalisation in training mode."""
        for module in self._modules:
            if module.training and _random_or_of_the_batch(module):
                raise UserError(
                    f"A network is in training mode, where its {type(module).__name__} makes it say something else "
                    "every time; call .eval() on it first."
                )

    def check(self, said: Callable[[], Tensor]) -> None:
        """Refuses networks in training mode, where ``said``, of an image or two, is another than in evaluation mode."""
        awake = [module for module in self._modules if module.training]
        if not awake:
            return
        self.refuse()
        if _differ(*_in_both_modes(awake, said)):
            raise UserError(
                f"A network is in training mode, where its {type(awake[0]).__name__} says something else than in "
                "evaluation mode; call .eval() on it first."
            )
        self._modules = [module for module in self._modules if module not in awake]


def _own(thing: object) -> bool:
    """Whether a module's, an object's or a function's code is a user's, which may do anything."""
    written = _home(thing.__module__ if isfunction(thing) else type(thing).__module__) not in KEPT
    return written or isinstance(thing, torch.jit.ScriptModule | GraphModule)


def _random_or_of_the_batch(module: nn.Module) -> bool:
    """Whether a module of torch says something else in training mode."""
    if isinstance(module, _BatchNorm):
        return True
    if isinstance(module, _InstanceNorm):
        return module.track_running_stats
    if isinstance(module, nn.RReLU):
        return module.lower < module.upper
    if isinstance(module, _SpectralNorm) or SpectralNorm in map(type, module._forward_pre_hooks.values()):
        return True
    rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0)
    return isinstance(rate, float) and rate > 0


Heard = tuple[Tensor | None, bool]
"""What was said, and whether it drew from a generator that the process has only one of."""


def _differ(loud: Heard, quiet: Heard) -> bool:
    """Whether training mode adds noise or says something else; noise that is there in both modes hides the rest."""
    return not quiet[1] and (loud[1] or not same(loud[0], quiet[0]))


def _in_both_modes(modules: list[nn.Module], said: Callable[[], Tensor]) -> tuple[Heard, Heard]:
    """What is said with modules as they are (None where they fail) and in evaluation mode; all is left as it was."""
    kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    with aside():
        try:
            for module in modules:
                module.training = False
            quiet = heard(said)
        finally:
            for module in modules:
                module.training = True
        try:
            return heard(said), quiet
        except (RuntimeError, ValueError) as e:  # as batch normalisation of one row
            if memory.lacking(e):
                raise
            return (None, False), quiet
        finally:
            for buffer, value in kept:
                buffer.copy_(value)


def heard(said: Callable[[], Tensor]) -> Heard:
    """What is said now."""
    before = stands()
    return said(), stands() != before


def refuse_drawing(said: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What is said twice, aside; refuses what draws at both times from a generator that the process has only one of."""
    with aside():
        (first, drew), (again, drew_again) = (heard(said) for _ in range(2))
    if drew and drew_again:
        raise UserError(
            "This draws from a generator of torch, NumPy or Python, which the seed given here does not repeat: take "
            "all noise from the rng that a purifier is given, or ask without a seed."
        )
    return first, again


def same(one: Tensor | None, other: Tensor) -> bool:
    """Whether two logits or images are the same but for rounding."""
    if one is None or one.shape != other.shape:
        return False
    scale = other.abs().nan_to_num(0.0, 0.0, 0.0).max()
    return torch.allclose(one, other, rtol=0, atol=1e-3 * float(scale), equal_nan=True)


@contextmanager
def aside() -> Iterator[None]:
    """A look that leaves no trace: no gradient, nothing counted, and torch's generator stands where it stood."""
    token = _unseen.set(True)
    try:
        with torch.no_grad(), replaying(), untouched():
            yield
    finally:
        _unseen.reset(token)


def looked_aside() -> bool:
    """Whether what runs is such a look."""
    return _unseen.get()
