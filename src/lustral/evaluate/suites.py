"""The suites: fixed lists of attacks without knobs, so that a number that names its suite says how it was found.

A suite has two parts. *Controls* face the first few images and let none go: they show whether the evaluation itself
is sound (a ladder of ever better gradients, fixed noise, an attack without bounds, a curve over eps, a black box).
*Attacks* face all images, the cheapest first; an image that one has decided leaves; ``worst`` judges every image's
worst candidate anew, on noise that nothing has seen. Its accuracy is the suite's number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ..attacks.apgd import APGD
from ..attacks.composed import Targeted, Transfer
from ..attacks.deviated import Deviated
from ..attacks.estimators import SPSA, Growing, LowPass
from ..attacks.fab import FAB
from ..attacks.gradients import Estimator, Gradient, KnownNoise, Selection, Victim, blind, bpda, exact, surrogate
from ..attacks.guide import guides
from ..attacks.losses import cross_entropy, dlr_toward, margin
from ..attacks.pgd import PGD, RandomSign
from ..attacks.search import Attack, Restarts
from ..attacks.square import Square
from ..attacks.stadv import Flow, StAdv
from ..core.adjoint import Checkpointed, Skip
from ..core.errors import unknown
from ..core.noise import Key
from ..core.threat import Linf, Threat
from ..defence import Defence
from .protocol import Job, Stage, System
from .sizes import SIZES, Size

TWIN = Key(0, ("twin",))  # the noise of the fixed-noise twin from which candidates are transferred
NONE: Mapping[str, Attack] = MappingProxyType({})
CURVE = (0.25, 0.5, 1.5, 2.0)  # of eps; the exact control is the fifth point


@dataclass(frozen=True, eq=False)
class Setting:
    """What a suite's attacks are made for: a system, a threat, how much to spend, and memory for step graphs."""

    system: System
    threat: Threat
    size: Size
    budget: int = 0

    @property
    def bare(self) -> bool:
        """Nothing purifies."""
        return self.system.defence.purifier is None

    @property
    def eot(self) -> int:
        """Decisions that make up the suite's number of purifications."""
        return self.decisions(self.size.eot)

    def decisions(self, purifications: int) -> int:
        return max(1, purifications // self.system.defence.vote.draws) if self.system.random else 1

    @property
    def select(self) -> Selection | None:
        """Selection by half as many draws as a gradient has, two decisions at least; none where there is no noise."""
        return Selection(max(2, self.decisions(self.size.eot // 2))) if self.system.random else None

    @property
    def looking(self) -> Selection:
        return self.select or Selection()

    @property
    def patience(self) -> int:
        return self.size.patience if self.system.random else min(1, self.size.patience)

    def exact(self, draws: int | None = None) -> Gradient:
        return exact(self.decisions(draws or self.size.eot), self.budget)

    def apgd(self, gradient: Estimator, loss=margin, steps: int | None = None, threat: Threat | None = None) -> APGD:
        return APGD(threat or self.threat, gradient, loss, steps or self.size.iterations, self.patience, self.select)

    @property
    def undefended(self) -> Victim:
        """The classifier alone."""
        return Defence(self.system.defence.classifier)


def jobs(
    name: str, systems: list[System], threat: Threat, images: int, budget: int = 0, own: Mapping[str, Attack] = NONE
) -> list[Job]:
    """The plan of a suite: every stage of every system; ``own`` are further attacks, which let no image go.

    The worst case chooses from those of the same threat too.
    """
    if name not in SIZES:
        raise unknown("suite", name, SIZES)
    found = []
    for system in systems:
        at = Setting(system, threat, SIZES[name], budget)
        few = min(images, at.size.controls)
        stages = [(stage, images) for stage in always(at)] + [(stage, few) for stage in controls(at)]
        stages += [(stage, few) for stage in other_threats(at)] if name == "gold" else []
        found += [Job(system, stage, count) for stage, count in stages]
        found += [Job(system, stage, images) for stage in cascade(at, name, own)]
    return found


def always(at: Setting) -> list[Stage]:
    """Clean accuracy and the null control, which looks as often as ``apgd-margin`` and on as many draws."""
    null = RandomSign(at.threat, at.size.iterations + 1, Selection(at.eot), margin)
    return [Stage("clean", None, at.size.final), Stage("null", null, at.size.final)]


def controls(at: Setting) -> list[Stage]:
    """Stages that let no image go."""
    steps, half = at.size.ladder, max(2, at.size.eot // 2)
    found: dict[str, Attack] = {}
    if not at.bare:
        unaware = Selection(1, Skip())
        # One who does not know of the purifier has no reason to stop where the classifier alone is fooled.
        found["blind"] = replace(at.apgd(blind(), steps=steps), select=unaware, patience=0)
        found["bpda"] = at.apgd(bpda(at.decisions(half)), steps=steps)
    found["exact"] = at.apgd(at.exact(half), steps=steps)
    found["unbounded"] = at.apgd(at.exact(half), steps=steps, threat=widest(at.threat))
    black = Square(at.threat, 10 * steps, margin, at.looking, at.patience) if isinstance(at.threat, Linf) else None
    found["black-box"] = black or PGD(at.threat, SPSA(4 * half, probe(at.threat)), margin, steps, select=at.looking)
    for eps in curve(at.threat):
        found[f"exact@eps={eps:.4g}"] = at.apgd(at.exact(half), steps=steps, threat=replace(at.threat, eps=eps))
    stages = [Stage(called, attack, at.size.judge) for called, attack in found.items()]
    if at.system.random:
        known = APGD(at.threat, exact(1, at.budget), margin, 2 * steps, patience=1)
        stages.append(Stage("fixed", known, at.size.judge, "known"))
    return stages


def probe(threat: Threat) -> float:
    """How far SPSA's queries step in every pixel: a quarter of eps in Linf; other norms' eps is no size of a pixel."""
    return threat.eps / 4 if isinstance(threat, Linf) else 0.03


def widest(threat: Threat) -> Threat:
    """The threat almost without bounds: half the pixel range in Linf, ten times eps in other norms."""
    return replace(threat, eps=max(0.5, threat.eps) if isinstance(threat, Linf) else 10 * threat.eps)


def curve(threat: Threat) -> list[float]:
    """The other sizes of eps of the security curve."""
    sizes = [share * threat.eps for share in CURVE]
    return sorted({min(size, 1.0) for size in sizes} - {threat.eps}) if isinstance(threat, Linf) else sizes


def other_threats(at: Setting) -> list[Stage]:
    """What ``gold`` shows beside the number: noise known in part (ADDT), and images bent instead of changed (StAdv)."""
    steps, stages = at.size.ladder, []
    if at.system.random:
        known = at.apgd(at.exact(), steps=steps)
        stages = [Stage(f"known {part}", known, at.size.judge, part) for part in ("init", "step")]
    bent = StAdv(Flow(1), at.exact(), margin, steps, at.patience, at.looking)
    return [*stages, Stage("stadv", bent, at.size.judge)]


def cascade(at: Setting, name: str, own: Mapping[str, Attack] = NONE) -> list[Stage]:
    """The attacks, the cheapest first, and the judgement of each image's worst candidate."""
    found = attacks(at) if name != "gold" else attacks(at) | thorough(at)
    stages: list[Stage] = []
    for called, attack in found.items():
        before = tuple(stage.name for stage in stages) if at.size.patience else ()
        stages.append(Stage(called, attack, at.size.judge, after=before))
    # Controls at this threat have candidates too; a worst case that left out a stronger one would be no worst case.
    controls = ("exact", "black-box") if at.bare else ("blind", "bpda", "exact", "black-box")
    more = [Stage(called, attack, at.size.judge) for called, attack in own.items()]
    choices = ("clean", "null", *controls, *found, *(stage.name for stage in more if stage.bound == at.threat))
    return [*stages, *more, Stage("worst", None, at.size.final, choose=choices, threat=at.threat)]


def attacks(at: Setting) -> dict[str, Attack]:
    """What ``quick`` and ``standard`` consist of; for a deterministic classifier that is AutoAttack's standard set."""
    size, found = at.size, {}
    if not at.bare:
        twin = (KnownNoise(at.system.defence, TWIN),) if at.system.random else ()
        sources = (at.undefended, *guides(at.system.defence.purifier), *twin)
        own = APGD(at.threat, Gradient(Checkpointed(at.budget)), margin, min(30, size.iterations), patience=0)
        found["transfer"] = Transfer(own, sources, at.looking)
        found["apgd-bpda"] = at.apgd(bpda(at.eot), steps=min(40, size.iterations))
    found["apgd-margin"] = at.apgd(at.exact(), margin)
    if size.targets:
        steps, targets = (size.targeted, size.targets) if at.system.random else (size.iterations, 9)
        found["apgd-ce"] = at.apgd(at.exact(), cross_entropy)
        leave = size.patience > 0
        aimed = at.apgd(at.exact(size.eot // 2), dlr_toward, steps)
        found["apgd-t"] = Targeted(aimed, targets, at.looking, leave)
        nearest = FAB(at.threat, at.exact(size.eot // 2), steps, at.looking, at.patience)
        found["fab-t"] = Targeted(nearest, targets, at.looking, leave)
    if size.queries:
        queries = size.queries if at.system.random else min(10 * size.queries, 5000)
        if isinstance(at.threat, Linf):
            found["square"] = Square(at.threat, queries, margin, at.looking, at.patience)
        else:
            spsa = SPSA(max(1, queries // 40), probe(at.threat))
            found["spsa"] = PGD(at.threat, spsa, margin, 20, patience=at.patience, select=at.looking)
    return found


def thorough(at: Setting) -> dict[str, Attack]:
    """What ``gold`` adds: draws until gradients agree, restarts, and the attacks that adaptive reviewers ask for."""
    adjoint, eot = Checkpointed(at.budget), at.eot
    most = max(2, at.decisions(128))
    growing = Growing(adjoint, 2 * max(1, min(most, 8) // 2), most, 0.7) if at.system.random else Gradient(adjoint)
    steps, size = 2 * at.size.iterations, 0.9 * at.threat.eps / 4  # of 8/255, Lee and Kim's 0.007
    found: dict[str, Attack] = {
        "apgd-growing": Restarts(at.apgd(growing), 3, leave=False),
        "pgd-200": PGD(at.threat, at.exact(), margin, steps, size, patience=at.patience, select=at.select),
        "low-frequency": at.apgd(LowPass(at.exact(), 0.5)),
    }
    if not at.bare:
        found["deviated"] = at.apgd(Gradient(Deviated(1.0, adjoint), eot))
    if at.system.surrogate is not None:
        found["surrogate"] = at.apgd(surrogate(at.system.surrogate, eot))
    return found
