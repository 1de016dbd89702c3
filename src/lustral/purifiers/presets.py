"""Purification systems by name, with their published settings as defaults."""

from dataclasses import fields, replace

from ..core.errors import UserError, unknown
from ..core.purifier import Purifier
from ..core.whole import finite, whole
from ..denoisers.base import Clipped, Denoiser
from ..samplers import DDIM, DDPM, SAMPLERS, Sampler
from ..schedules import VP, DiscreteVP, Schedule
from .adaptive import Adaptive, AdaptivePublished, Field, UnitField
from .compose import Chain, FieldNorm, chain, repeat, when
from .diffusion import Diffusion, Guidance, TStar
from .guided import Parts, Representing, Robust, Towards, closeness, ssim
from .rounds import Rounds
from .sample_specific import Linear, Logistic, Reference, Rounded, ScoreNorm, score_norm


def diffpure(
    denoiser: Denoiser,
    t_star: float | TStar = 0.1,
    solver: str | Sampler = "sde",
    *,
    steps: int | None = None,
    dt: float | None = None,
    schedule: Schedule | None = None,
    rounds: int = 1,
    clamp: bool = False,
    t_max: float | None = None,
) -> Purifier:
    """DiffPure (Nie et al. 2022): diffuse to ``t_star``, then reverse with ``solver``.

    Defaults are the reference's: VP with β from 0.1 to 20, t* = 0.1, Euler–Maruyama with dt = 1e-3 (100 steps), no
    clamping. ``solver`` is one of sde, sde-mean (no noise in the last step), ode, ddpm, ddim, heun, one-shot,
    langevin, or a sampler of your own. ``steps`` replaces the step size ``dt`` by a number of equal steps. ``rounds``
    purifies several times in a row.
    """
    if isinstance(solver, str):
        if solver not in SAMPLERS:
            raise unknown("solver", solver, SAMPLERS)
        solver = SAMPLERS[solver]()
    return repeat(Diffusion(denoiser, schedule or VP(), _stepping(solver, steps, dt), t_star, t_max, clamp), rounds)


def _stepping(solver: Sampler, steps: int | None, dt: float | None) -> Sampler:
    """The solver with another grid."""
    grid = {name: value for name, value in (("steps", steps), ("dt", dt)) if value is not None}
    for name in grid:
        if name not in {known.name for known in fields(solver)}:
            raise UserError(f"{type(solver).__name__} has no {name} to choose; leave {name} out (null).")
    return replace(solver, **grid)


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
    finite(share, "share")
    level = options.pop("field_sigma", None) or sigma or 0.25
    gate = FieldNorm(UnitField(denoiser, level), threshold)
    strong = adp(denoiser, sigma, field_sigma=level, **options)
    return when(gate, strong, adp(denoiser, share * sigma, field_sigma=level, **options))


def gnsp(
    denoiser: Denoiser,
    levels: tuple[int, ...] = (30, 30, 30, 30, 50, 50, 125, 125),
    schedule: Schedule | None = None,
    steps: int | None = None,
) -> Chain:
    """GNSP (Lee and Kim, ICCV 2023): rounds of ever more noise, ``levels`` in steps of the schedule, each undone.

    Defaults are CIFAR-10's: 470 network calls; ``steps`` is a number for each round instead. The paper takes the
    majority of 10 runs.
    """
    process, levels = schedule or DiscreteVP.linear(), [whole(level, "A level of gnsp", 1) for level in levels]
    return chain(*(Diffusion(denoiser, process, DDPM(steps=steps), level * process.dt) for level in levels))


def gdmp(
    denoiser: Denoiser,
    t_star: float = 0.036,
    *,
    rounds: int = 4,
    likeness: str | None = "mse",
    strength: float | None = None,
    noised: bool = True,
    schedule: Schedule | None = None,
    steps: int | None = None,
    dt: float | None = None,
) -> Rounds:
    """GDMP (Wang et al. 2022): DDPM rounds, each drawn towards the first input.

    Defaults are CIFAR-10's: 4 rounds of 36 steps with β as variance, guided by the squared error with guide_scale
    60 000 (1000 for ``ssim``). ``strength`` is 3·guide_scale·255/16 per sample, the published one divided by batches of
    100; ``likeness`` None is the unguided ablation. The paper takes the majority of 10 runs.
    """
    process = schedule or DiscreteVP.linear()
    guidance: Guidance | None = None
    if likeness is not None:
        if likeness not in LIKENESSES:
            raise unknown("likeness", likeness, LIKENESSES)
        measure, scale = LIKENESSES[likeness]
        guidance = Towards(process, 3 * scale * 255 / 16 / 100 if strength is None else strength, measure, noised)
    stage = Diffusion(Clipped(denoiser), process, DDPM("large", steps=steps, dt=dt), t_star, guidance=guidance)
    return _rounds(stage, rounds)


LIKENESSES = {"mse": (closeness, 60_000.0), "ssim": (ssim, 1000.0)}


def adbm(denoiser: Denoiser, t_star: float = 0.1, *, steps: int = 5, schedule: Schedule | None = None) -> Diffusion:
    """ADBM's inference (Li et al., ICLR 2025): DDIM in 5 steps, estimates and output cut to [0, 1].

    The bridge is in the network's weights (``lustral train adbm``). As in the released code the estimate is cut and the
    direction of a step is not; unlike it, the image is diffused with the schedule that is then reversed.
    """
    return Diffusion(denoiser, schedule or VP(), DDIM(steps=steps), t_star, clamp=True, cut=True)


def agdm(
    denoiser: Denoiser,
    guide: Representing | Parts,
    t_star: float = 0.1,
    solver: str | Sampler = "ddpm",
    *,
    class_weight: float = 100.0,
    latent_weight: float = 0.1,
    rounds: int = 1,
    **options,
) -> Rounds:
    """DiffPure guided by a robust classifier, after AGDM (Lin et al. 2024): a reconstruction, as no code is public.

    ``guide`` was trained adversarially (``lustral train trades``). No scales are published: tune both weights on
    validation images, as these were for digits. ``options`` are those of ``diffpure``.
    """
    if not (hasattr(guide, "features") and hasattr(guide, "head")):
        raise UserError("AGDM's guide needs features(x) and head(features); lustral.Parts(features, head) makes one.")
    plain = diffpure(denoiser, t_star, solver, **options)
    return _rounds(replace(plain, guidance=Robust(guide, class_weight, latent_weight)), rounds)


def _rounds(stage: Diffusion, rounds: int) -> Rounds:
    return Rounds((stage,) * whole(rounds, "rounds", 1))


def ssni(
    purifier: Diffusion | Chain,
    reference: Reference,
    *,
    law: str = "logistic",
    tau: float | None = None,
    bias: float = 0.0,
    norm: ScoreNorm | None = None,
    published: bool = False,
) -> Rounds:
    """SSNI (Sun et al., ICML 2025) around DiffPure, GDMP or GNSP: times chosen from the input's score norm.

    ``law`` is ``logistic`` (SSNI-N, whose ``tau`` is the spread of clean norms if not given) or ``linear`` (SSNI-L).
    ``bias`` is in units of time and raises the largest time. ``norm`` is what the reference was measured with, by
    default the ``score_norm`` of its kind. With a sampler of so many ``steps`` every sample takes all of them; with one
    of steps of ``dt`` a cleaner sample takes fewer. ``published`` rounds times, and those of DDPM's and DDIM's
    ``steps``, to whole steps of the schedule, where a cleaner sample repeats some.
    """
    stages = purifier.stages if isinstance(purifier, Chain) else (purifier,)
    if not all(isinstance(stage, Diffusion) and not callable(stage.t_star) for stage in stages):
        raise UserError("SSNI wraps diffusion purifiers with a constant t_star, or a chain of them.")
    first = stages[0]
    if norm is None:
        plain = first.denoiser.inner if isinstance(first.denoiser, Clipped) else first.denoiser
        norm = score_norm(plain, reference.kind)
    made = (_timed(stage, reference, law, tau, bias, published) for stage in stages)
    return Rounds(tuple(made), norm)


def _timed(
    stage: Diffusion, reference: Reference, law: str, tau: float | None, bias: float, published: bool
) -> Diffusion:
    """The stage with a time for every sample."""
    least, room = stage.schedule.dt, stage.schedule.t_max - stage.t_star
    if not 0 <= bias <= room:
        raise UserError(f"bias is added to t_star={stage.t_star:g} and must lie in [0, {room:g}], not {bias:g}.")
    t_star = stage.t_star - least if published else stage.t_star
    if law == "logistic":
        time = Logistic(t_star, reference.mean, reference.std if tau is None else tau, bias, least)
    elif law == "linear":
        time = Linear(t_star, reference.low, reference.high, bias, least)
    else:
        raise unknown("law", law, ("logistic", "linear"))
    if not published:
        return replace(stage, t_star=time, t_max=time.t_max)
    time = Rounded(time, least)
    if isinstance(stage.sampler, DDPM | DDIM) and stage.sampler.steps is not None:
        stage = replace(stage, sampler=replace(stage.sampler, whole=True))
    return replace(stage, t_star=time, t_max=time.t_max)
