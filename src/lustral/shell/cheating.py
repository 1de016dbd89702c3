"""Cheats and broken attacks as controls: each with the findings one of which must be red."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..core.noise import Key
from ..core.threat import Threat
from ..defence import Defence, defend
from ..evaluate import cheats, controls
from ..evaluate.protocol import Stage
from .control import Control

FOLLOWED = ("followed-gradient", "finite-difference")
FLAT = ("gradient-exists", "finite-difference", "path-integral")
RIPPLED = ("bpda-over-exact", "transfer", "black-box", *FOLLOWED)


def _behind(front: Callable, net: nn.Module) -> Callable:
    """A classifier that hides both in a closure."""
    return lambda x: net(front(x))


def _overstepping(stage: Stage, threat: Threat) -> Stage:
    return Stage(stage.name, controls.Overstepping(threat), stage.draws) if stage.name == "apgd-margin" else stage


def _thermometer(steep: float, levels: int = 16) -> Callable[[Tensor], Tensor]:
    """A soft staircase: the mean of steep sigmoids at grey levels, flat nearly everywhere."""
    return lambda x: torch.stack([torch.sigmoid(steep * (x - (k + 0.5) / levels)) for k in range(levels)]).mean(dim=0)


def _labels(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Labels as steps beside a small leak that leads nowhere, at every image."""

    def logits(x: Tensor) -> Tensor:
        true = net(x)
        leak = x.flatten(1) @ Key(0).rng(x[0].numel()).normal(true.new_empty(x[0].numel(), true.shape[1]))
        return 10 * one_hot(true.argmax(dim=1), true.shape[1]).to(true) + 0.1 * leak

    return logits


def _by_mode(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Another classifier for whoever wants a gradient."""
    return lambda x: net(1 - x) if torch.is_grad_enabled() else net(x)


def _rounded(x: Tensor) -> Tensor:
    """Few grey levels, with the gradient of the identity."""
    return x + (torch.round(4 * x) / 4 - x).detach()


CHEATS = {
    # It finds no address to read, so it is what an honest system with as much noise is.
    "reads its address": Control(lambda p: defend(p.net, cheats.reads_address), random=True),
    "shattered gradients": Control(lambda p: Defence(p.net, controls.shattered()), FLAT[:2]),
    "rippled gradients": Control(lambda p: Defence(p.net, controls.rippled()), RIPPLED),
    "garbage in float32": Control(lambda p: defend(p.net, cheats.bent(cheats.garbage32)), FOLLOWED),
    "turned in float32": Control(lambda p: defend(p.net, cheats.bent(cheats.reversed32)), FOLLOWED),
    "garbage in a closure": Control(lambda p: Defence(_behind(cheats.bent(cheats.garbage32), p.net)), FOLLOWED),
    "garbage after 20 calls": Control(lambda p: defend(p.net, cheats.bent(cheats.After(20))), FOLLOWED),
    "steps and a leak inside eps": Control(
        lambda p: Defence(cheats.leaking(p.net, p.data.x, p.threat.eps)), ("path-integral", *FOLLOWED)
    ),
    "false beyond eps": Control(
        lambda p: defend(p.net, cheats.bent(cheats.beyond(p.data.x, p.threat.eps))), ("path-integral", *FOLLOWED)
    ),
    "a part of the gradient": Control(
        lambda p: defend(p.net, cheats.bent(cheats.partly(p.data.x, p.threat.eps))), ("followed-gradient",)
    ),
    "counts its calls": Control(lambda p: defend(p.net, cheats.Counting(20)), ("replayable", "asked-alike")),
    "knows who calls": Control(lambda p: defend(p.net, cheats.knows_caller), ("asked-alike",), random=True),
    "reversed attack": Control(
        lambda p: Defence(p.net),
        ("unbounded", "random-noise", "null-control"),
        lambda stage, _: controls.sabotaged(stage),
    ),
    "overstepping attack": Control(lambda p: Defence(p.net), ("threat-kept",), _overstepping),
}

MORE_CHEATS = {
    "garbage after 60 calls": Control(
        lambda p: defend(p.net, cheats.bent(cheats.After(60))), FOLLOWED, unseen=("smoke", "quick")
    ),
    "garbage after 200 calls": Control(
        lambda p: defend(p.net, cheats.bent(cheats.After(200))), FOLLOWED, unseen=("smoke", "quick", "standard")
    ),
    "counts 200 calls": Control(lambda p: defend(p.net, cheats.Counting(200)), ("replayable", "asked-alike")),
    "ripples of 0.001 at 20000": Control(lambda p: Defence(p.net, controls.rippled(0.001, 20000.0)), RIPPLED),
    "ripples of 0.002 at 5000": Control(lambda p: Defence(p.net, controls.rippled(0.002, 5000.0)), RIPPLED),
    "ripples of 0.02 at 300": Control(lambda p: Defence(p.net, controls.rippled(0.02, 300.0)), RIPPLED),
    "ripples of 0.0001 at 100000": Control(lambda p: Defence(p.net, controls.rippled(1e-4, 1e5)), RIPPLED),
    "steep thermometer": Control(lambda p: defend(p.net, _thermometer(steep=4000.0)), (*FLAT, *RIPPLED)),
    # Its gradient is small but right, and sign attacks need no more: what it shows is what it is.
    "soft thermometer": Control(lambda p: defend(p.net, _thermometer(steep=400.0))),
    "steps and a leak everywhere": Control(lambda p: Defence(_labels(p.net)), ("path-integral", *FOLLOWED)),
    "few levels, gradient of the identity": Control(lambda p: defend(p.net, _rounded), ("path-integral", *FOLLOWED)),
    "detached": Control(lambda p: defend(p.net, lambda x: x.detach()), FLAT),
    "labels alone": Control(
        lambda p: Defence(lambda x: one_hot(p.net(x).argmax(dim=1), 10).to(x)), ("gradient-exists",)
    ),
    "probabilities without a rest": Control(
        lambda p: Defence(lambda x: (1000 * p.net(x)).softmax(dim=1)), ("gradient-exists",)
    ),
    "another face for gradients": Control(lambda p: Defence(_by_mode(p.net)), ("asked-alike",)),
}
"""Those of ``--thorough``."""
