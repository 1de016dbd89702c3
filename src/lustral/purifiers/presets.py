"""The founding systems, by name: ``diffpure`` and ``adp`` in all their published variants."""

from dataclasses import replace

from ..core.errors import unknown
from ..core.purifier import Purifier
from ..denoisers.base import Denoiser
from ..samplers import SAMPLERS, Sampler
from ..schedules import VP, Schedule
from .adaptive import Adaptive, AdaptivePublished, Field, UnitField
from .compose import FieldNorm, repeat, when
from .diffusion import Diffusion, TStar


def diffpure(
    denoiser: Denoiser,
    t_star: float | TStar = 0.1,
    solver: str | Sampler = "sde",
    *,
    steps: int | None = None,
    schedule: Schedule | None = None,
    rounds: int = 1,
    clamp: bool = False,
    t_max: float | None = None,
) -> Purifier:
    """DiffPure (Nie et al. 2022): diffuse to ``t_star``, then reverse with ``solver``.

    Defaults are the reference's: VP with β from 0.1 to 20, t* = 0.1, Euler–Maruyama with dt = 1e-3 (100 steps), no
    clamping. ``solver`` is one of sde, ode, ddpm, ddim, heun, one-shot, langevin, or a sampler of your own. ``steps``
    replaces the step size by a number of equal steps. ``rounds`` purifies several times in a row.
    """
    if isinstance(solver, str):
        if solver not in SAMPLERS:
            raise unknown("solver", solver, SAMPLERS)
        solver = SAMPLERS[solver]()
    if steps is not None:
        solver = replace(solver, steps=steps)
    return repeat(Diffusion(denoiser, schedule or VP(), solver, t_star, t_max, clamp), rounds)


def adp(
    denoiser: Denoiser,
    sigma: float = 0.25,
    *,
    steps: int = 10,
    field_sigma: float | None = None,
    delta: float = 1e-3,
    lam: float = 0.05,
    alpha_min: float = 1e-5,
    alpha_max: float = 0.1,
    tau: float = 1e-3,
    screen: str = "gaussian",
    published: bool = False,
) -> Purifier:
    """ADP (Yoon et al. 2021): screening noise ``sigma``, then up to ``steps`` adaptive denoising steps.

    ``field_sigma`` is the noise level at which a conditional denoiser is asked (default: ``sigma``); for the
    unconditional networks of the paper it makes no difference. ``published`` reproduces the released code's contrast
    stretching. The paper merges 10 runs: ``defend(classifier, adp(...), vote=MeanSoftmax(10))``.
    """
    level = sigma if field_sigma is None else field_sigma
    unit: Field = UnitField(denoiser, level or 0.25)
    kernel = Adaptive(unit, sigma, steps, delta, lam, alpha_min, alpha_max, tau, screen)
    return AdaptivePublished(kernel) if published else kernel


def adp_gated(denoiser: Denoiser, sigma: float = 0.25, *, threshold: float, share: float = 0.2, **options) -> Purifier:
    """ADP's detection-gated variant: images with a field norm up to ``threshold`` get ``share``·sigma of noise.

    The norm is taken on the raw input. ``options`` are those of ``adp``.
    """
    level = options.pop("field_sigma", None) or sigma
    gate = FieldNorm(UnitField(denoiser, level), threshold)
    strong = adp(denoiser, sigma, field_sigma=level, **options)
    return when(gate, strong, adp(denoiser, share * sigma, field_sigma=level, **options))
