"""What people may say on the command line and in YAML: plain dataclasses that import nothing heavy.

Field docstrings are the help texts. ``build.py`` turns these into objects.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .number import Number

Method = Literal["none", "diffpure", "adp", "gdmp", "gnsp", "adbm", "agdm"]
Solver = Literal["sde", "sde-mean", "ode", "ddpm", "ddim", "heun", "one-shot", "langevin"]
VoteName = Literal["single", "mean-softmax", "mean-logits", "majority"]
SetName = Literal["digits", "cifar10", "cifar100", "mnist", "fashion-mnist"]
Split = Literal["test", "validation"]
Norm = Literal["linf", "l2", "l1"]
NetName = Literal["small", "resnet", "whitened", "wide", "unet", "ddpm", "ddpm++", "refinenet"]
TaskName = Literal["classifier", "denoiser", "addt", "adbm", "pgd-at", "trades"]
Precision = Literal["float32", "bfloat16"]
LossName = Literal["cross-entropy", "margin", "dlr"]
StageName = Literal[
    "clean", "null", "blind", "bpda", "exact", "fixed", "known init", "known step", "spsa", "bpda signs", "joint score",
    "joint full", "low-frequency", "deviated", "held level", "lowered norm",
    "surrogate", "guide", "square", "apgd", "stadv",
]  # fmt: skip


@dataclass(frozen=True)
class Purification:
    """How images are purified."""

    method: Method = "diffpure"
    """The purification system; `lustral list` says what each is."""
    denoiser: str | None = None
    """Denoiser: a name from `lustral list` or a .safetensors file with its card beside it; default: digits-unet for
    digits, cifar10-unet for cifar10."""
    t_star: Number | None = None
    """How far to diffuse, as a time in (0, 1] of the VP process; default: 0.1, and 0.036 for gdmp (as published)."""
    solver: Solver = "ddpm"
    """DiffPure, agdm: the reverse process. DiffPure published sde, which needs 100 steps (in 10 it leaves noise)."""
    steps: int | None = None
    """Number of steps (of a round); default: 10 for diffpure, agdm and adp, the published number for others."""
    dt: Number | None = None
    """DiffPure, gdmp, agdm: length of a step in time, in place of their number (published: 0.001); with SSNI, cleaner
    images then take fewer."""
    rounds: int | None = None
    """DiffPure, gdmp: how many times in a row; default: 1, and 4 for gdmp."""
    ssni: Literal["logistic", "linear"] | None = None
    """Choose each image's own noise level from its score norm (SSNI-N or SSNI-L); all but adp."""
    norm: Literal["eps", "single"] = "eps"
    """SSNI: the mean of the scores at 20 small times (eps), or one score (single)."""
    tau: float | None = None
    """SSNI-N: how many units of score norm the levels are spread over; default: the spread of clean norms."""
    bias: float = 0.0
    """SSNI: added to the largest time."""
    likeness: Literal["mse", "ssim"] = "mse"
    """gdmp: how the state is compared with the input."""
    strength: float | None = None
    """gdmp: strength of the guidance per sample; default: the published one in batches of 100."""
    guide: str | None = None
    """agdm: the robust classifier that guides; default: digits-trades for digits, cifar10-trades for cifar10."""
    class_weight: float = 100.0
    """agdm: weight of the guide's verdict."""
    latent_weight: float = 0.1
    """agdm: weight of the distance between representations."""
    clamp: bool = False
    """DiffPure: cut the output to [0, 1] (the reference does not)."""
    sigma: Number = 0.25
    """ADP: standard deviation of the screening noise, for images in [0, 1]."""
    published: bool = False
    """As the released code does and the equations do not. ADP: stretch contrast at every step. SSNI: round times."""
    gate: float | None = None
    """ADP: length of sigma times the score, over all pixels, up to which an image counts as clean and gets a fifth of
    the noise (not SSNI's score norm)."""
    fixed_noise: bool = False
    """Every image always meets the same noise, its own: a deterministic twin, for comparison."""


@dataclass(frozen=True)
class Shown:
    """A film strip of a purification."""

    strip: Path | None = None
    """PNG to write: the first images after the steps, with their t*, score norm or step size."""
    images: int = 6
    """How many images it shows."""
    classifier: str | None = None
    """Whose verdict stands above every frame."""


@dataclass(frozen=True)
class Classification:
    """How purified images are classified."""

    classifier: str | None = None
    """Classifier: a name from `lustral list` or a .safetensors file with its card beside it; default: digits-cnn for
    digits, cifar10-whitened for cifar10."""
    vote: VoteName = "single"
    """How draws become a verdict."""
    draws: int = 1
    """Purifications per verdict."""


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker may change."""

    norm: Norm = "linf"
    """Norm of the change."""
    eps: Number | None = None
    """Its largest length, for images in [0, 1], as a number or a fraction; default: what is usual for the data (linf:
    3/16 for digits, 0.3 for mnist, 0.1 for fashion-mnist, 8/255 for cifar10 and cifar100, for which 0.5 in l2 and 12 in
    l1)."""


@dataclass(frozen=True)
class Search:
    """How the attacker searches."""

    steps: int = 15
    """Gradient steps."""
    eot: int = 8
    """Decisions that every gradient is averaged over."""
    loss: LossName = "cross-entropy"
    """What is climbed."""
    step_size: Number | None = None
    """Length of a step; default 2.5·eps/steps."""
    restarts: int = 1
    """Random restarts."""
    momentum: float = 0.0
    """Decay of MI-FGSM's momentum; 0 is off."""


@dataclass(frozen=True)
class Resources:
    """What may be spent; it changes no result beyond rounding (batch and budget, with --micro_batch, not by a bit)."""

    batch: int = 32
    """Images at a time."""
    budget: float = 2.0
    """GiB of step graphs that the exact gradient may keep instead of recomputing, shared by all threads."""
    threads: int | None = None
    """Cores: an evaluation runs a batch on each, other commands use them together; default: all."""
    device: str = "cpu"
    """Where networks compute: cpu, cuda, cuda:1. A run belongs to one; enlarge batch and micro_batch for a GPU."""


@dataclass(frozen=True)
class Entry:
    """One system of an evaluation of several."""

    purification: Purification | None = None
    """How images are purified; default: as the evaluation says for all."""
    classification: Classification | None = None
    """How they are classified; default: as the evaluation says for all."""


@dataclass(frozen=True)
class Grid:
    """What to tune over: every combination of these values."""

    t_star: list[Number] | None = None
    """How far to diffuse."""
    sigma: list[Number] | None = None
    """ADP's screening noise."""
    steps: list[int] | None = None
    """Number of steps."""
    rounds: list[int] | None = None
    """How many times in a row."""
    tau: list[float] | None = None
    """SSNI-N's spread."""
    bias: list[float] | None = None
    """SSNI's addition to the largest time."""
    strength: list[float] | None = None
    """gdmp's guidance."""
    class_weight: list[float] | None = None
    """agdm's weight of the guide's verdict."""
    latent_weight: list[float] | None = None
    """agdm's weight of the distance between representations."""


@dataclass(frozen=True)
class Network:
    """What is trained."""

    kind: NetName | None = None
    """For classifiers small (the default), resnet, whitened or wide; for denoisers unet (the default), ddpm,
    ddpm++ or refinenet."""
    width: int | None = None
    """Channels of its first level, a multiple of 2; default: 32 for small, 64 for resnet and whitened, 16 for unet, 128
    for ddpm, ddpm++ and refinenet, and the factor 10 for wide."""
    depth: int = 28
    """Layers of wide."""
    levels: int = 2
    """Resolutions of unet; the width doubles with each."""
    blocks: int = 1
    """Residual blocks of a level of unet, ddpm, ddpm++."""
    patch: int = 2
    """unet works on squares of this many pixels, which divides its cost by their number."""
    normalised: bool = True
    """unet: group normalisation. Without it a network is faster in bfloat16; one not told the noise needs it."""
    activation: Literal["relu", "silu", "gelu"] = "relu"
    """Of resnet, whitened and wide."""
    mirror: bool = False
    """whitened: outside training, average logits over an image and its mirror image."""
    start: str | None = None
    """Weights to begin with (fine-tuning); they bring their network, and the options above are not used."""


@dataclass(frozen=True)
class Noise:
    """What noise a denoiser learns to remove, and how errors are weighed."""

    objective: Literal["log-uniform", "edm", "ddpm", "dsm", "v"] = "log-uniform"
    """edm, ddpm (noise prediction), v; dsm: NCSN, whose network (unet or refinenet) is not told the noise, as ADP's is
    not; log-uniform: EDM's weights, every octave alike."""
    t_max: float = 0.3
    """The largest noise, as a time in (0, 1] of the VP process. A purifier needs none beyond its t*."""


@dataclass(frozen=True)
class Adversary:
    """Whom adversarial training trains against."""

    guide: str | None = None
    """addt, adbm: the frozen classifier that is to be fooled; default: digits-cnn for digits, cifar10-whitened for
    cifar10."""
    eps: Number | None = None
    """adbm, pgd-at, trades, and addt where not mapped: Linf radius, for images in [0, 1]; default: what is usual for
    the data, as --threat.eps of `lustral evaluate`."""
    steps: int = 10
    """pgd-at, trades: steps of the search, each of 2.5·eps/steps."""
    beta: float = 6.0
    """trades: weight of the adversarial term."""
    mapped: bool = True
    """addt: rank-based Gaussian mapping; without it, the Linf ablation."""


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation's numbers depend on."""

    data: str
    images: int
    suite: str | None
    stages: list
    systems: dict[str, Entry] | None
    purification: Purification
    classification: Classification
    threat: ThreatModel
    search: Search
    draws: int
    seed: int
    micro_batch: int | None
    split: Split = "test"
    corruption: str | None = None
    precision: Precision = "float32"
