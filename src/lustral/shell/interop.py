"""Foolbox, ART, AutoAttack and torchattacks: our defences in their hands, and their attacks in our evaluations.

torchattacks takes a defence as it is. Everything here sees images [n, c, h, w] in [0, 1].
"""

from functools import partial
from importlib import import_module
from inspect import signature
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.foreign import Foreign, Perturb
from ..attacks.gradients import Selection
from ..core.errors import UserError
from ..core.kernel import purify
from ..core.networks import modules_in
from ..core.noise import Key
from ..core.purifier import Purifier
from ..core.threat import L1, L2, Linf, Threat
from ..defence import Defence

NORMS = {Linf: "Linf", L2: "L2", L1: "L1"}
# ART accepts L1 for the first and then returns clean images; the eps of the second is of another distance.
ART_ONLY = {"SquareAttack": ("Linf", "L2"), "Wasserstein": ()}


def foolbox_model(defence: Defence, key: Key | None = None) -> Any:
    """A ``foolbox.PyTorchModel`` of the defence, with the noise of ``key`` at every call, or fresh noise."""
    return _foolbox_model(_face(defence, key))


def art_classifier(defence: Defence, image_shape: tuple[int, ...], classes: int, key: Key | None = None) -> Any:
    """An ART ``PyTorchClassifier`` of the defence for images [c, h, w], with the noise of ``key`` or fresh noise.

    ART predicts in batches: under a key, a row's noise is that of its place in its batch.
    """
    return _art_estimator(_face(defence, key), image_shape, classes)


def art_preprocessor(purifier: Purifier, key: Key) -> Any:
    """An ART ``PreprocessorPyTorch`` that purifies before prediction, not before fitting.

    Its gradient is the true one through the purifier, on the noise of the forward pass, where ART's own defences
    mostly take the identity (BPDA). Before a classifier it is ``defend(classifier, purifier).bind(key)``.
    """
    base = _library("art.defences.preprocessor.preprocessor").PreprocessorPyTorch

    class Purification(base):
        def __init__(self):
            device = _device(nn.ModuleList(modules_in(purifier)))
            super().__init__(device_type=_art_device(device), is_fitted=True, apply_fit=False, apply_predict=True)
            self.purifier, self.key = purifier, key

        def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
            return purify(self.purifier, x, self.key.fold("purify").rng(len(x))), y

    return Purification()


def autoattack(
    defence: Defence, threat: Threat, key: Key | None = None, *, library: str = "pyautoattack", **options: Any
) -> Any:
    """The library's ``AutoAttack`` on the defence; ``library`` names pyautoattack or another copy of it.

    Where noise is fresh its version is ``rand``, unless ``options`` say otherwise.
    """
    fresh = {"version": "rand"} if key is None and defence.purifier is not None else {}
    return _autoattack_object(library, threat, fresh | options, _face(defence, key))


def torchattacks_attack(name: str, threat: Threat, eot: int = 1, **options: Any) -> Foreign:
    """torchattacks' attack of that name, as one of ours."""
    return _foreign(f"torchattacks' {name}", partial(_torchattacks, name, threat, options), threat, eot)


def foolbox_attack(name: str, threat: Threat, eot: int = 1, **options: Any) -> Foreign:
    """Foolbox's attack of that name, as one of ours; those that minimise a distance are clipped to the threat."""
    return _foreign(f"Foolbox's {name}", partial(_foolbox, name, threat, options), threat, eot)


def art_attack(
    name: str,
    threat: Threat,
    eot: int = 1,
    *,
    image_shape: tuple[int, ...],
    classes: int,
    **options: Any,
) -> Foreign:
    """ART's evasion attack of that name on images [c, h, w], as one of ours."""
    make = partial(_art, name, threat, options, image_shape, classes)
    return _foreign(f"ART's {name}", make, threat, eot)


def autoattack_attack(
    threat: Threat,
    eot: int = 1,
    *,
    library: str = "pyautoattack",
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> Foreign:
    """AutoAttack as one of ours; ``settings`` are attributes to set on it, such as ``{"apgd.n_iter": 20}``."""
    make = partial(_autoattack, library, threat, options, settings or {})
    return _foreign(f"{library}'s AutoAttack", make, threat, eot)


def _foreign(title: str, make: partial, threat: Threat, eot: int) -> Foreign:
    """The attack, made once on a stand-in so that wrong options are refused here and not in mid-run.

    Its candidate is looked at with as many draws as its gradients.
    """
    try:
        make(nn.PReLU())
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{title} refuses these options: {error}") from error
    return Foreign(threat, make, eot, Selection(eot))


def _torchattacks(name: str, threat: Threat, options: dict, model: nn.Module) -> Perturb:
    attack_class = _named("torchattacks", name)
    takes = signature(attack_class).parameters
    alone = ("L2",) if name.endswith("L2") else ("Linf",)
    known = () if "eps" not in takes else ("Linf", "L2") if "norm" in takes else alone
    settings = {"eps": threat.eps, "norm": _norm(threat, known, name), "seed": torch.initial_seed()}
    attack = attack_class(model, **{k: v for k, v in settings.items() if k in takes} | options)
    attack.set_device(_device(model))

    def perturb(x: Tensor, y: Tensor) -> Tensor:
        if y.dim() == 1:
            return attack(x, y)
        if "targeted" not in attack.supported_mode:
            raise _aimless(f"torchattacks' {name}")
        attack.set_mode_targeted_by_label(quiet=True)
        return attack(x, y[:, 1])

    return perturb


def _foolbox(name: str, threat: Threat, options: dict, model: nn.Module) -> Perturb:
    attack, foolbox = _named("foolbox.attacks", name)(**options), _library("foolbox")
    distances = {"Linf": foolbox.distances.linf, "L2": foolbox.distances.l2, "L1": foolbox.distances.l1}
    _norm(threat, [norm for norm, distance in distances.items() if attack.distance is distance], name)

    def perturb(x: Tensor, y: Tensor) -> Tensor:
        criteria = foolbox.criteria
        if y.dim() == 1:
            return attack(_foolbox_model(model), x, criteria.Misclassification(y), epsilons=threat.eps)[1]
        if isinstance(attack, foolbox.attacks.deepfool.DeepFoolAttack):  # which does not look at the criterion's target
            raise _aimless(f"Foolbox's {name}")
        try:
            return attack(_foolbox_model(model), x, criteria.TargetedMisclassification(y[:, 1]), epsilons=threat.eps)[1]
        except ValueError as error:
            if "unsupported criterion" not in str(error):
                raise
            raise _aimless(f"Foolbox's {name}") from error

    return perturb


def _art(
    name: str, threat: Threat, options: dict, image_shape: tuple[int, ...], classes: int, model: nn.Module
) -> Perturb:
    attack_class = _named("art.attacks.evasion", name)
    takes = signature(attack_class).parameters
    norm = _norm(threat, ART_ONLY.get(name, NORMS.values() if {"eps", "norm"} <= takes.keys() else ()), name)
    quiet = {"verbose": False} if "verbose" in takes else {}
    order = {"Linf": "inf", "L2": 2, "L1": 1}[norm]
    if "targeted" in options:
        raise UserError(f"ART's {name} is targeted where labels are (label, target) pairs; leave its own option out.")
    estimator = _art_estimator(model, image_shape, classes)
    made = partial(attack_class, estimator, eps=threat.eps, norm=order, **quiet | options)
    attack = made()  # which says what is wrong with its options

    def perturb(x: Tensor, y: Tensor) -> Tensor:
        if y.dim() == 2 and "targeted" not in takes:
            raise _aimless(f"ART's {name}")
        used, labels = (attack, y) if y.dim() == 1 else (made(targeted=True), y[:, 1])
        return torch.from_numpy(used.generate(x.cpu().numpy(), labels.cpu().numpy()))

    return perturb


def _autoattack(library: str, threat: Threat, options: dict, settings: dict, model: nn.Module) -> Perturb:
    attack = _autoattack_object(library, threat, {"seed": torch.initial_seed()} | options, model)
    for path, value in settings.items():
        *owners, name = path.split(".")
        owner = attrgetter(".".join(owners))(attack) if owners else attack
        getattr(owner, name)  # a setting that is not there is a mistake, which would change nothing
        setattr(owner, name, value)

    def perturb(x: Tensor, y: Tensor) -> Tensor:
        if y.dim() == 2:
            raise _aimless("AutoAttack")
        found = attack.run_standard_evaluation(x, y)
        return found[0] if isinstance(found, tuple) else found

    return perturb


def _aimless(title: str) -> UserError:
    return UserError(f"{title} does not go for a target of yours; give it labels alone, or pairs to another attack.")


def _autoattack_object(library: str, threat: Threat, options: dict, model: nn.Module) -> Any:
    norm = _norm(threat, NORMS.values(), "AutoAttack")
    return _named(library, "AutoAttack")(model, norm=norm, eps=threat.eps, device=str(_device(model)), **options)


def _foolbox_model(model: nn.Module) -> Any:
    return _library("foolbox").PyTorchModel(model, bounds=(0, 1), device=_device(model))


def _art_estimator(model: nn.Module, image_shape: tuple[int, ...], classes: int) -> Any:
    return _library("art.estimators.classification").PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=image_shape,
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type=_art_device(_device(model)),
    )


def _face(defence: Defence, key: Key | None) -> nn.Module:
    """The defence as a module, with fresh noise or that of a key."""
    return defence if key is None else defence.bind(key)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters(), torch.empty(0)).device


def _art_device(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "gpu"


def _norm(threat: Threat, known: Any, name: str) -> str:
    """The threat's norm, if it is among those that an attack knows."""
    norm = NORMS.get(type(threat), type(threat).__name__)
    if norm not in known:
        raise UserError(f"{name} attacks within {' or '.join(known) or 'no norm ball'}, not within {norm}.")
    return norm


def _named(library: str, name: str) -> Any:
    found = getattr(_library(library), name, None)
    if found is None:
        raise UserError(f"{library} has no attack {name!r}.")
    return found


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"Cannot import {error.name}: pip install 'lustral[interop]' brings Foolbox, ART and pyautoattack, and "
            "pip install --no-deps torchattacks brings torchattacks."
        ) from error
