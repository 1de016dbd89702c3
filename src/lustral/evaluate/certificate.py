"""The gradient certificate: what was measured of a defence's gradients and noise, on a few images, before any attack.

Plain numbers, stored with the run; ``findings`` says what they mean. Everything is measured on the network that the
attacks meet; only the finite differences run on a float64 copy, where they can be told from rounding.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode

from ..attacks.apgd import APGD
from ..attacks.gradients import Gradient, Selection, bpda, exact
from ..attacks.losses import margin
from ..attacks.pgd import RandomSign
from ..core import memory
from ..core.adjoint import Checkpointed, Direct
from ..core.errors import UserError
from ..core.inference import differentiable
from ..core.networks import Networks, weights
from ..core.noise import Key, Rng, audit, veiled
from ..core.purifier import Purifier
from ..core.threat import L1, Linf, Threat
from ..defence import Defence
from . import metrics
from .binarise import binarise
from .deployed import differences, places, ways
from .protocol import Data, System
from .suites import widest
from .witness import Later

TWINS, BINARISED, GRADIENTS = 32, 8, 32
SEEN = 64
"""The first images, which are the most that any measurement looks at."""
IMAGES, HORIZON, DRAWS, DIRECTIONS = 4, 8, (2, 4, 8, 16, 32, 64), 100
OFF = 0.98  # of an image, the rest is noise: where pixels of 8 bits are equal, medians and maxima have kinks
STEPS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)  # of difference quotients in float64; a cast to float32 inside needs the longest


@differentiable
def certify(system: System, data: Data, threat: Threat, key: Key, *, eot: int = 16, thorough: bool = True) -> dict:
    """All measurements of one system on the first images of the data.

    ``eot`` is the number of purifications that the attacks average; ``thorough`` adds the binarisation test.
    """
    few, defence = data[:IMAGES], system.defence
    run, key = key, key.fold(system.name, "certificate")
    found: dict = {"images": len(few.ids)}
    one_face(defence, few, key)
    later = Later(defence, few.x, key.rng(few.ids).fold("later"))
    found |= noise_facts(defence, few, threat, key)
    found |= gradient_facts(defence, few, threat, key)
    found |= zero_facts(defence, data[:GRADIENTS], key)
    found |= differences(system, few, threat, key)
    found["ways"] = ways(system, few, key)
    if defence.purifier is not None:
        own = Networks(defence.purifier).cast(few.x)
        found |= replay_facts(defence.purifier, own, key.rng(few.ids).fold("replay"))
        found |= purification_facts(defence, data, key)
    if system.random:
        found["agreement"] = agreement(defence, few, key, 2 * eot)
        found["places"] = places(system, few, run)
    found |= undefended_facts(defence, data[:TWINS], threat, key)
    if thorough:
        attack = APGD(threat, exact(), margin, 20, select=Selection() if system.random else None)
        test = binarise(system, data[:BINARISED], threat, attack, RandomSign(threat, 21), key.fold("binarise"))
        found["binarisation"] = test._asdict()
    found["replays"] &= not any(probe.measured for probe in later.again())
    return found


def undefended_facts(defence: Defence, data: Data, threat: Threat, key: Key) -> dict:
    """What an attack leaves of the classifier alone, at eps and almost without bounds."""
    bare, found = Defence(defence.classifier), {}
    for name, against in (("undefended", threat), ("undefended_unbounded", widest(threat))):
        attack = APGD(against, Gradient(None), margin, 50, patience=1)
        wrong = attack.run(bare, data.x, data.y, key.rng(data.ids).fold(name)).wrong
        found[name] = float((wrong < 1).double().mean())
    return found


@torch.no_grad()
def draws_noise(defence: Defence, data: Data, threat: Threat) -> bool:
    """Whether two looks differ, at images or at random signs of full size on them: a detector may pass clean images."""
    signs = Key(0).rng(data.ids).fold("signs").sign(data.x)
    moved = threat.project(threat.ascend(data.x, signs, threat.eps), data.x)
    looks = ([defence.logits(x, Key(k).rng(data.ids)) for k in (0, 1)] for x in (data.x, moved))
    return not all(torch.equal(first, second) for first, second in looks)


def one_face(defence: Defence, data: Data, key: Key) -> None:
    """Refuses a defence whose logits are of other classes where no gradient is asked for."""
    rng, said = key.rng(data.ids).fold("face"), []
    for graded in (False, True):
        with torch.set_grad_enabled(graded):
            said.append(defence.logits(data.x.clone().requires_grad_(graded), rng).shape[1])
    if said[0] != said[1]:
        raise UserError(
            f"This defence says {said[1]} classes where gradients are on and {said[0]} where they are off (no_grad); "
            "let it answer alike, or nothing that attacks find says anything of it."
        )


def noise_facts(defence: Defence, data: Data, threat: Threat, key: Key) -> dict:
    """Is it random, does it replay, and does an image's result depend on its neighbours?"""
    rng = key.rng(data.ids).fold("noise")
    with torch.no_grad():
        first, again = (defence.logits(data.x, rng) for _ in range(2))
        back = torch.arange(len(data.ids)).flip(0)
        turned = defence.logits(data.x[back], rng[back])[back]
        alone = torch.cat([defence.logits(data.x[i : i + 1], rng[i : i + 1]) for i in range(len(data.ids))])
    scale = first.abs().amax().clamp_min(1e-12)
    return {
        "replays": bool(torch.equal(first, again)),
        "random": draws_noise(defence, data, threat),
        "neighbours": float(torch.maximum((turned - first).abs(), (alone - first).abs()).max() / scale),
        "probabilities": metrics.probabilities(first),
        "finite": bool(torch.isfinite(first).all()),
    }


def gradient_facts(defence: Defence, data: Data, threat: Threat, key: Key) -> dict:
    """Does the gradient exist, is it that of plain autograd, and do finite differences agree?"""
    rng = key.rng(data.ids).fold("gradient")
    look = exact()(defence, data.x, data.y, margin, rng)
    flat = look.grad.flatten(1)
    found = {
        **in_float64(defence, data, key),
        "roughness": roughness(defence, data, threat, rng),
    }
    if defence.purifier is not None:
        around = bpda()(defence, data.x, data.y, margin, rng).grad.flatten(1)
        found["cosine_bpda"] = float(cosine_similarity(flat, around).mean())
    return found


def zero_facts(defence: Defence, data: Data, key: Key) -> dict:
    """How many images have no gradient, on more images than the other measurements."""
    flat = exact()(defence, data.x, data.y, margin, key.rng(data.ids).fold("zero")).grad.flatten(1)
    return {
        "gradient_finite": bool(torch.isfinite(flat).all()),
        "gradient_zero": float((flat == 0).all(dim=1).double().mean()),
        "gradient_norm": float(flat.norm(dim=1).mean()),
    }


def in_float64(defence: Defence, data: Data, key: Key) -> dict:
    """``finite_difference``, and whether something inside ``rounds``.

    The first is None for a defence that holds networks where no copy can reach them (in a closure).
    """
    found, rounding = None, Rounding()
    try:
        with rounding:
            found = finite_difference(defence, data, key)
    except (TypeError, RuntimeError) as e:  # a part of it is still float32, which torch says in many ways
        if memory.lacking(e):
            raise
    return {"finite_difference": found, "rounds": rounding.seen}


class Rounding(TorchDispatchMode):
    """Sees whether anything in float64 is taken to a lower precision."""

    def __init__(self):
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
            self.seen |= out.dtype in (torch.float32, torch.float16, torch.bfloat16)
        return out


def finite_difference(defence: Defence, data: Data, key: Key) -> float:
    """The largest over images of |difference quotient − ⟨g, d⟩|/|g| along a normal random direction d, noise frozen.

    An image's error is that at its best step: long ones cross the kinks of ReLU, short ones see rounding, and a wrong
    gradient is wrong at all of them.
    """
    double = copy.deepcopy(defence).double()
    if any(p.dtype != torch.float64 for p in weights(double.classifier, double.purifier)):
        raise TypeError("a network that no copy reaches computes in another precision")
    rng = key.rng(data.ids).fold("difference")
    x = rng.fold("off the grid").uniform(data.x.double()).lerp(data.x.double(), OFF)  # where a median has no ties
    direction = rng.fold("direction").normal(x)
    look = exact()(double, x, data.y, margin, rng)
    slope = (look.grad * direction).flatten(1).sum(dim=1)
    errors = []
    for step in STEPS:
        with torch.no_grad():
            ends = [margin(double.logits(x + s * step * direction, rng), data.y) for s in (1, -1)]
        errors.append(((ends[0] - ends[1]) / (2 * step) - slope).abs())
    # Against the gradient's length, the standard deviation of ⟨g, d⟩: an ⟨g, d⟩ near zero by chance is no error.
    best, length = torch.stack(errors).nan_to_num(nan=torch.inf).amin(dim=0), look.grad.flatten(1).norm(dim=1)
    return float((best / length.clamp_min(1e-12)).nan_to_num(nan=torch.inf).max())


def roughness(defence: Defence, data: Data, threat: Threat, rng: Rng) -> float:
    """The mean relative change of the loss along random directions of full size under frozen noise (Pintor 2022)."""
    n = DIRECTIONS
    x, y = data.x.repeat_interleave(n, dim=0), data.y.repeat_interleave(n)
    rows = rng.repeat(n)
    sign = rows.fold("direction").sign(x)
    pixels = x[0].numel()
    size = threat.eps / (1 if isinstance(threat, Linf) else pixels if isinstance(threat, L1) else pixels**0.5)
    with torch.no_grad():
        before = margin(defence.logits(data.x, rng), data.y).repeat_interleave(n)
        after = margin(defence.logits((x + size * sign).clamp(0, 1), rng.again(n)), y)
    return float(((after - before).abs() / before.abs().clamp_min(1e-6)).mean())


def agreement(defence: Defence, data: Data, key: Key, most: int) -> list[tuple[int, float]]:
    """For numbers of draws N up to ``most``, the mean cosine of the gradients of two disjoint sets of N decisions."""
    votes, found = defence.vote.draws, []
    for draws in sorted({max(1, n // votes) for n in DRAWS if n <= most}):
        halves = [key.rng(data.ids).fold("half", draws, k) for k in (0, 1)]
        a, b = (exact(draws)(defence, data.x, data.y, margin, rng).grad.flatten(1) for rng in halves)
        found.append((draws, float(cosine_similarity(a, b).mean())))
    return found


def replay_facts(purifier: Purifier, x: Tensor, rng: Rng) -> dict:
    """Every step run twice, the second time as the backward pass does: same state to the bit, same noise addresses.

    And the exact gradient against plain autograd on the first steps, and how the gradient's length changes on its way.
    """
    rng = veiled(rng)
    state, norms = purifier.init(x, rng.fold("init")), []
    replays, addresses = True, True
    for i in range(purifier.n_steps):
        with audit() as first, torch.no_grad():
            following = purifier.step(i, state, rng.fold("step", i))
        with audit() as second, torch.enable_grad():
            again = purifier.step(i, state, rng.fold("step", i))
        addresses &= first == second
        replays &= _same(following, again)
        state = following
    short = First(purifier, min(HORIZON, purifier.n_steps))
    direct, checkpointed = (_pulled(short, adjoint, x, rng) for adjoint in (Direct(), Checkpointed()))
    error = (direct - checkpointed).norm() / direct.norm().clamp_min(1e-20)
    for steps in sorted({1, max(1, purifier.n_steps // 2), purifier.n_steps}):
        norms.append((steps, float(_pulled(First(purifier, steps), Checkpointed(), x, rng).norm() / x.numel() ** 0.5)))
    return {
        "replays_states": replays,
        "replays_addresses": addresses,
        "autograd": float(error.nan_to_num(nan=torch.inf)),
        "norms": norms,
    }


class First:
    """The first steps of a purifier."""

    def __init__(self, inner: Purifier, n_steps: int):
        self.n_steps, self.init, self.step, self.readout = n_steps, inner.init, inner.step, inner.readout


def _pulled(purifier: Purifier, adjoint: Callable, x: Tensor, rng: Rng) -> Tensor:
    """The gradient of ⟨a fixed sign pattern, purified image⟩."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        out = adjoint(purifier, leaf, rng)
        if not out.requires_grad:
            return torch.zeros_like(x)
        (grad,) = torch.autograd.grad((out * rng.fold("pattern").sign(x)).sum(), leaf, allow_unused=True)
    return torch.zeros_like(x) if grad is None else grad


def _same(a: object, b: object) -> bool:
    if isinstance(a, tuple):
        return all(_same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@torch.no_grad()
def purification_facts(defence: Defence, data: Data, key: Key) -> dict:
    """What purification does to clean images: how far they move, how often their label changes, how much is clipped."""
    few = data[:SEEN]
    own = Networks(defence.purifier).cast(few.x)
    out = Checkpointed()(defence.purifier, own, key.rng(few.ids).fold("clean").fold("purify"))
    before, after = defence.classify(few.x).argmax(dim=1), defence.classify(out).argmax(dim=1)
    return {
        "moved": float((out - few.x).square().mean().sqrt()),
        "drift": float((before != after).double().mean()),
        "clipped": float(((out == 0) | (out == 1)).double().mean()),
        "steps": defence.purifier.n_steps,
    }
