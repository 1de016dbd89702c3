"""What is usual for a data set, where nothing else is said: the length of an attack, and the networks that ship."""

from dataclasses import dataclass, field, replace

from ..core.errors import UserError
from .options import Adversary, Classification, Entry, Evaluation, Purification, ThreatModel


@dataclass(frozen=True)
class Usual:
    """Of one data set: eps by norm, for images in [0, 1], and names of networks for its images and classes."""

    eps: dict[str, float] = field(default_factory=dict)
    classifier: str | None = None
    denoiser: str | None = None
    guide: str | None = None
    """A robust classifier."""


# MNIST's: Madry et al. 2018; Fashion-MNIST's and CIFAR's in Linf and L2: AutoAttack and RobustBench (Croce et al. 2020,
# 2021); in L1: Croce and Hein 2021. The digits': three of their 17 grey levels (demo.py says why that is fair).
CIFAR = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
USUAL = {
    "digits": Usual({"linf": 3 / 16}, "digits-cnn", "digits-unet", "digits-trades"),
    "mnist": Usual({"linf": 0.3}),
    "fashion-mnist": Usual({"linf": 0.1}),
    "cifar10": Usual(CIFAR, "cifar10-whitened", "cifar10-unet", "cifar10-trades"),
    "cifar100": Usual(CIFAR),
}
KNOWN = "MNIST 0.3, Fashion-MNIST 0.1, CIFAR 8/255, ImageNet 4/255 in linf; CIFAR 0.5 in l2 and 12 in l1"


def evaluation(options: Evaluation) -> Evaluation:
    """The options with what is usual for their data in place of what they leave out, where something is usual."""
    data, systems = options.data, options.systems
    if systems is not None:
        systems = {
            name: Entry(
                entry.purification and purification(entry.purification, data),
                entry.classification and classification(entry.classification, data),
            )
            for name, entry in systems.items()
        }
    return replace(
        options,
        systems=systems,
        purification=purification(options.purification, data),
        classification=classification(options.classification, data),
        threat=threat(options.threat, data),
    )


def system(how: Purification, judge: Classification, data: str) -> tuple[Purification, Classification]:
    """Both parts of a system with what is usual for the data."""
    return purification(how, data), classification(judge, data)


def purification(how: Purification, data: str) -> Purification:
    """The same with the denoiser, and for agdm the guide, that is usual for the data."""
    usual = USUAL.get(data, Usual())
    guide = usual.guide if how.method == "agdm" else None
    return replace(how, denoiser=how.denoiser or usual.denoiser, guide=how.guide or guide)


def classification(judge: Classification, data: str) -> Classification:
    """The same with the classifier that is usual for the data."""
    return replace(judge, classifier=judge.classifier or USUAL.get(data, Usual()).classifier)


def threat(options: ThreatModel, data: str) -> ThreatModel:
    """The same with the eps that is usual for the data in that norm; one that is needed where none is usual."""
    eps = USUAL.get(data, Usual()).eps.get(options.norm) if options.eps is None else options.eps
    if eps is None:
        raise UserError(f"No eps is usual for {data} in {options.norm}; say --threat.eps ({KNOWN}).")
    return replace(options, eps=eps)


def adversary(options: Adversary, data: str) -> Adversary:
    """The same with the guide and the Linf radius that are usual for the data."""
    usual = USUAL.get(data, Usual())
    eps = usual.eps.get("linf") if options.eps is None else options.eps
    return replace(options, guide=options.guide or usual.classifier, eps=eps)


def named(what: str, name: str | None, option: str) -> str:
    """The name of a network that is needed, which for data of one's own is the user's to say."""
    if name is None:
        raise UserError(f"No {what} is usual for this data; name one with {option} (`lustral list` knows some).")
    return name
