"""No public constructor takes a part of a number for a count, or what is not finite for a number."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args

import numpy as np
import pytest
import torch

import lustral
from components import images, jitter, net_denoiser
from lustral.attacks.deviated import Deviated
from lustral.attacks.estimators import Displacement
from lustral.attacks.levels import LoweredNorm
from lustral.core.errors import UserError
from lustral.core.whole import finite
from lustral.evaluate.protocol import Stage
from lustral.purifiers.adaptive import UnitField
from lustral.purifiers.compose import FieldNorm
from lustral.purifiers.sample_specific import Linear, Logistic
from lustral.schedules import EDM

NET, JITTER, LINF = net_denoiser(), lustral.from_function(jitter), lustral.Linf(0.1)
SEARCH = lustral.PGD(LINF, lustral.exact())
WHOLE: dict[str, dict[str, Any]] = {  # a constructor, what it must be given, and no more: its fields are looked up
    "DDPM": {},
    "DDIM": {},
    "SDE": {},
    "ODE": {},
    "Heun": {},
    "Langevin": {},
    "VP": {},
    "VE": {},
    "DiscreteVP": {"betas": (0.1, 0.2)},
    "Checkpointed": {},
    "Lanes": {},
    "Single": {},
    "MeanLogits": {"draws": 2},
    "MeanSoftmax": {"draws": 2},
    "Majority": {"draws": 2},
    "Abstain": {"vote": lustral.Single(), "margin": 0.1},
    "L1": {"eps": 1.0},
    "L2": {"eps": 1.0},
    "Linf": {"eps": 0.1},
    "Adaptive": {"field": UnitField(NET)},
    "Diffusion": {"denoiser": NET, "schedule": lustral.VP(), "sampler": lustral.DDIM(steps=2)},
    "APGD": {"threat": LINF, "gradient": lustral.exact()},
    "PGD": {"threat": LINF, "gradient": lustral.exact()},
    "FAB": {"threat": LINF, "gradient": lustral.exact()},
    "RandomSign": {"threat": LINF},
    "Square": {"threat": LINF},
    "SPSA": {},
    "Growing": {"adjoint": lustral.Checkpointed()},
    "LowPass": {"gradient": lustral.exact()},
    "Selection": {},
    "Targeted": {"search": SEARCH},
    "Restarts": {"search": SEARCH, "times": 2},
    "Foreign": {"threat": LINF, "make": lambda model: None},
    "Flow": {},
    "StAdv": {"threat": lustral.Flow(1), "gradient": lustral.exact()},
}
MORE: dict[str, tuple[type, dict[str, Any]]] = {
    "EDM": (EDM, {}),
    "UnitField": (UnitField, {"denoiser": NET}),
    "FieldNorm": (FieldNorm, {"field": UnitField(NET)}),
    "Logistic": (Logistic, {"t_star": 0.1, "mean": 1.0, "tau": 1.0}),
    "Linear": (Linear, {"t_star": 0.1, "low": 1.0, "high": 2.0}),
    "Stage": (Stage, {"name": "s"}),
    "Displacement": (Displacement, {"purifier": JITTER}),
    "Deviated": (Deviated, {}),
}
MADE = {name: (getattr(lustral, name), given) for name, given in WHOLE.items()} | MORE


def kinds(made: type, wanted: type) -> list[str]:
    """The fields of a constructor that take numbers of a type."""
    unions = [(f.name, get_args(f.type) if isinstance(f.type, UnionType) else (f.type,)) for f in fields(made)]
    return [name for name, held in unions if wanted in held]


COUNTS = [(name, field) for name, (made, _) in MADE.items() for field in kinds(made, int)]
NUMBERS = [(name, field) for name, (made, _) in MADE.items() for field in kinds(made, float)]


def test_every_public_dataclass_with_numbers_is_looked_at():
    public = {name: getattr(lustral, name) for name in lustral.__all__ if is_dataclass(getattr(lustral, name))}
    with_numbers = {name for name, made in public.items() if kinds(made, int) + kinds(made, float)}
    assert with_numbers - {"Key", "Robust", "Towards"} <= MADE.keys()
    assert len(COUNTS) > 30
    assert len(NUMBERS) > 45


@pytest.mark.parametrize(("name", "field"), COUNTS)
@pytest.mark.parametrize("wrong", [1.5, float("nan"), "3", True])
def test_a_count_is_a_whole_number(name, field, wrong):
    made, given = MADE[name]
    with pytest.raises(UserError, match="whole number|by one draw"):
        made(**given | {field: wrong})


@pytest.mark.parametrize(("name", "field"), NUMBERS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), "0.5"])
def test_a_number_is_finite(name, field, wrong):
    made, given = MADE[name]
    with pytest.raises(UserError) as said:
        made(**given | {field: wrong})
    assert repr(wrong).strip("'") in str(said.value)
    assert str(said.value).count("\n") == 0


NEAR: dict[str, Callable[[Any], Any]] = {
    "exact": lustral.exact,
    "exact's budget": lambda n: lustral.exact(1, n),
    "bpda": lustral.bpda,
    "surrogate": lambda n: lustral.surrogate(JITTER, n),
    "repeat": lambda n: lustral.repeat(JITTER, n),
    "diffpure": lambda n: lustral.diffpure(NET, steps=n),
    "diffpure's rounds": lambda n: lustral.diffpure(NET, rounds=n),
    "adp": lambda n: lustral.adp(NET, steps=n),
    "adbm": lambda n: lustral.adbm(NET, steps=n),
    "gdmp": lambda n: lustral.gdmp(NET, steps=n),
    "gdmp's rounds": lambda n: lustral.gdmp(NET, rounds=n),
    "gnsp": lambda n: lustral.gnsp(NET, steps=n),
    "gnsp's levels": lambda n: lustral.gnsp(NET, (n,)),
    "lanes": lambda n: lustral.defend(torch.nn.Flatten().eval(), lanes=n),
    "betas": lambda n: lustral.DiscreteVP.linear(n=n),
    "cosine betas": lustral.DiscreteVP.cosine,
    "function": lambda n: lustral.from_function(jitter, steps=n),
}
FINITE: dict[str, Callable[[Any], Any]] = {
    "diffpure": lambda v: lustral.diffpure(NET, v),
    "diffpure's dt": lambda v: lustral.diffpure(NET, solver="sde", dt=v),
    "adp": lambda v: lustral.adp(NET, v),
    "adp_gated": lambda v: lustral.adp_gated(NET, threshold=v),
    "adp_gated's share": lambda v: lustral.adp_gated(NET, threshold=1.0, share=v),
    "adbm": lambda v: lustral.adbm(NET, v),
    "gdmp": lambda v: lustral.gdmp(NET, v),
    "gdmp's strength": lambda v: lustral.gdmp(NET, strength=v),
}


@pytest.mark.parametrize("name", NEAR)
@pytest.mark.parametrize("wrong", [1.5, 2.0, float("nan"), "3"])
def test_functions_that_make_something_want_whole_numbers_too(name, wrong):
    with pytest.raises(UserError, match="whole number"):
        NEAR[name](wrong)


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_and_finite_ones(name, wrong):
    with pytest.raises(UserError, match=str(wrong)):
        FINITE[name](wrong)


def test_whole_numbers_of_any_library_are_taken():
    for two in (2, np.int64(2), torch.tensor(2)):
        assert lustral.MeanSoftmax(two) == lustral.MeanSoftmax(2)
        assert lustral.DDIM(steps=two) == lustral.DDIM(steps=2)
        assert type(lustral.exact(two).eot) is int
        assert len(lustral.repeat(JITTER, two).stages) == 2
    for half in (0.5, np.float32(0.5), torch.tensor(0.5)):
        finite(half, "it")
        assert float(lustral.DDIM(eta=half).eta) == 0.5
    x = images(2)
    assert torch.equal(lustral.purify(JITTER, x, 0), lustral.purify(lustral.repeat(JITTER, np.int64(1)), x, 0))


def test_a_weight_of_a_loss_is_finite():
    with pytest.raises(UserError, match="LoweredNorm's weight must be a finite number, not nan"):
        LoweredNorm(float("nan"))
