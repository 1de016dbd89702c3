"""Lustral: adversarial purification. Defend image classifiers, attack the defences honestly, record what happened.

The names below are the whole public face; they load on first use, so importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "core.adjoint": ("Checkpointed", "Direct", "Identity", "Skip", "Surrogate"),
    "core.errors": ("UserError",),
    "core.kernel": ("purify", "trace"),
    "core.lanes": ("Lanes",),
    "core.noise": ("Key", "Rng"),
    "core.purifier": ("Purifier",),
    "core.threat": ("L1", "L2", "Linf"),
    "core.vote": ("Abstain", "Majority", "MeanLogits", "MeanSoftmax", "Single"),
    "schedules": ("VE", "VP", "DiscreteVP"),
    "samplers": ("DDIM", "DDPM", "ODE", "SDE", "Heun", "Langevin", "OneShot"),
    "denoisers.base": ("Denoiser",),
    "denoisers.ideal": ("FiniteSet", "GaussianMixture"),
    "purifiers.adaptive": ("Adaptive",),
    "purifiers.compose": ("chain", "from_function", "repeat", "when"),
    "purifiers.diffusion": ("Diffusion",),
    "purifiers.guided": ("Parts", "Robust", "Towards"),
    "purifiers.presets": ("adbm", "adp", "adp_gated", "agdm", "diffpure", "gdmp", "gnsp", "ssni"),
    "purifiers.sample_specific": ("Reference", "ScoreNorm"),
    "defence": ("Defence", "defend"),
    "attacks.apgd": ("APGD",),
    "attacks.composed": ("Targeted", "Transfer"),
    "attacks.estimators": ("SPSA", "Growing", "LowPass"),
    "attacks.fab": ("FAB",),
    "attacks.foreign": ("Foreign",),
    "attacks.gradients": ("KnownNoise", "Selection", "blind", "bpda", "exact", "surrogate"),
    "attacks.pgd": ("PGD", "RandomSign"),
    "attacks.search": ("Outcome", "Restarts"),
    "attacks.square": ("Square",),
    "attacks.stadv": ("Flow", "StAdv"),
    "evaluate.protocol": ("Data",),
    "shell.assess": ("assess", "verify"),
    "shell.shipped": ("classifier", "data", "denoiser", "load", "recommended", "reference"),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_NAMES)]


def __getattr__(name: str):
    if name not in _NAMES:
        raise AttributeError(f"module 'lustral' has no attribute {name!r}")
    return getattr(import_module(f"lustral.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from .attacks.apgd import APGD
    from .attacks.composed import Targeted, Transfer
    from .attacks.estimators import SPSA, Growing, LowPass
    from .attacks.fab import FAB
    from .attacks.foreign import Foreign
    from .attacks.gradients import KnownNoise, Selection, blind, bpda, exact, surrogate
    from .attacks.pgd import PGD, RandomSign
    from .attacks.search import Outcome, Restarts
    from .attacks.square import Square
    from .attacks.stadv import Flow, StAdv
    from .core.adjoint import Checkpointed, Direct, Identity, Skip, Surrogate
    from .core.errors import UserError
    from .core.kernel import purify, trace
    from .core.lanes import Lanes
    from .core.noise import Key, Rng
    from .core.purifier import Purifier
    from .core.threat import L1, L2, Linf
    from .core.vote import Abstain, Majority, MeanLogits, MeanSoftmax, Single
    from .defence import Defence, defend
    from .denoisers.base import Denoiser
    from .denoisers.ideal import FiniteSet, GaussianMixture
    from .evaluate.protocol import Data
    from .purifiers.adaptive import Adaptive
    from .purifiers.compose import chain, from_function, repeat, when
    from .purifiers.diffusion import Diffusion
    from .purifiers.guided import Parts, Robust, Towards
    from .purifiers.presets import adbm, adp, adp_gated, agdm, diffpure, gdmp, gnsp, ssni
    from .purifiers.sample_specific import Reference, ScoreNorm
    from .samplers import DDIM, DDPM, ODE, SDE, Heun, Langevin, OneShot
    from .schedules import VE, VP, DiscreteVP
    from .shell.assess import assess, verify
    from .shell.shipped import classifier, data, denoiser, load, recommended, reference
