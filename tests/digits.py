"""What the tests of whole evaluations share: the shipped networks, a few digits, plans that take seconds."""

from lustral.core.noise import Key
from lustral.core.threat import L2, Linf
from lustral.defence import Defence
from lustral.evaluate.protocol import Data, Job, System
from lustral.shell import build, standard
from lustral.shell.images import data as datasets
from lustral.shell.options import Classification, Purification, Resources, Search

EPS = 3 / 16
STAGES = ("clean", "null", "bpda", "exact", "fixed")


def digits(n: int) -> Data:
    """The first test digits."""
    return datasets.load("digits", "test")[:n]


def system(name: str, how: Purification, judge: Classification = Classification(), *rest, **options) -> System:
    """A system of the networks that ship for the digits."""
    return build.system(name, *standard.system(how, judge, "digits"), *rest, **options)


def defence(steps: int = 3, key: Key | None = None) -> Defence:
    """The shipped classifier behind a short DiffPure with the shipped denoiser."""
    found = system("diffpure", Purification(steps=steps)).defence
    return Defence(found.classifier, found.purifier, key=key)


def plan(images: int, micro_batch: int | None, resources: Resources = Resources()) -> list[Job]:
    """Undefended, DiffPure and ADP, each facing every stage."""
    how = {
        "undefended": (Purification(method="none"), Classification()),
        "diffpure": (Purification(steps=3), Classification()),
        "adp": (Purification(method="adp", steps=2), Classification(vote="mean-softmax", draws=2)),
    }
    systems = [system(name, *parts, micro_batch) for name, parts in how.items()]
    search = Search(steps=2, eot=2)
    # An L2 step depends on every bit of the gradient; the sign of an Linf step hides the last ones.
    threats = {"exact": L2(1.0)} | dict.fromkeys(("clean", "null", "bpda", "fixed"), Linf(EPS))
    return [
        Job(system, build.stage(name, system, threats[name], search, resources, draws=2), images)
        for system in systems
        for name in STAGES
    ]
