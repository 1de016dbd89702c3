"""What callers in Python hand over, as ours: images of many kinds, attacks of their own and of torchattacks."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from ..attacks.foreign import Foreign, Perturb
from ..attacks.gradients import Selection
from ..attacks.search import Attack, Outcome
from ..core.errors import UserError
from ..core.noise import Rng
from ..core.threat import Threat
from ..core.whole import whole
from ..evaluate.protocol import Data
from ..training.batches import as_floats
from .images.data import as_images

NO_SET = Mapping | Tensor | np.ndarray | str | IterableDataset
TAKEN = "lustral.data(...), a pair (images, labels), a torch Dataset, or a DataLoader that does not shuffle"


def data(given: Any, images: int | None = None, classes: Iterable[str] | None = None) -> Data:
    """The first ``images`` of what was given (all of them: None), with ids by place where it has none of its own.

    The names of the classes are those that are said, else the ``classes`` of a data set.
    """
    if images is not None:
        whole(images, "images", 1)
    if isinstance(given, Data):
        found = given[:images]
    elif isinstance(given, tuple | list) and len(given) == 2:
        found = _pair(*(part[:images] for part in given))
    elif isinstance(given, DataLoader):
        found = _loaded(given, images)
    elif all(hasattr(type(given), need) for need in ("__getitem__", "__len__")) and not isinstance(given, NO_SET):
        count = len(given) if images is None else min(images, len(given))
        found = _stacked([given[i] for i in range(count)])
    else:
        raise UserError(f"Images are given as {TAKEN}, not as {type(given).__name__}.")
    source = given.dataset if isinstance(given, DataLoader) else given
    named = tuple(map(str, (getattr(source, "classes", None) if classes is None else classes) or ()))
    if classes is not None and len(found.y) and int(found.y.max()) >= len(named):
        raise UserError(f"There are {len(named)} names of classes, but labels up to {int(found.y.max())}.")
    return found._replace(classes=named)


def _loaded(loader: DataLoader, images: int | None) -> Data:
    order = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(loader.dataset, IterableDataset) or not isinstance(order, SequentialSampler):
        raise UserError(
            "This DataLoader does not go through a data set in its order, so no image would keep its place; make it "
            "with shuffle=False and without a sampler."
        )
    if loader.drop_last and len(loader.dataset) % (loader.batch_size or 1):
        raise UserError("This DataLoader leaves its last images out; make it with drop_last=False.")
    batches, count = [], 0
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UserError("Batches of a DataLoader are pairs (images, labels) here.")
        batches.append(batch)
        count += len(batch[0])
        if images is not None and count >= images:
            break
    if not batches:
        raise UserError("Data needs at least one image, and for each an id of its own.")
    x, y = (torch.cat([torch.as_tensor(part) for part in parts])[:images] for parts in zip(*batches, strict=True))
    return _pair(x, y)


def _stacked(items: list) -> Data:
    if not items or not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
        raise UserError(
            "A data set has pairs (image, label) here, at least one; make others so, or give a pair (images, labels)."
        )
    images, labels = zip(*items, strict=True)
    if not all(isinstance(image, Tensor) for image in images):  # pictures of Pillow, arrays
        return _pair(np.stack([np.asarray(image) for image in images]), torch.as_tensor(labels))
    return _pair(torch.stack(images), torch.as_tensor(labels))


def _pair(x: Any, y: Any) -> Data:
    if isinstance(x, np.ndarray):
        x = as_images(x, "Images")
    if not isinstance(x, Tensor):
        raise UserError(f"Images are a torch tensor or a NumPy array, not {type(x).__name__}.")
    y = torch.as_tensor(y)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UserError(f"Labels are whole numbers, one for each image, not {y.dtype}.")
    return Data(torch.arange(len(x)), as_floats(x), y.long())


def attacks(given: Mapping[str, Any], threat: Threat, eot: int) -> dict[str, Attack]:
    """Attacks by name: ours or one with ``threat`` and ``run``, one of torchattacks, a function (model, x, y) → images.

    The latter two see the mean over ``eot`` decisions. What a function leaves outside of the threat is mended and
    counted, as with ours; an attack of torchattacks for another norm or eps is refused.
    """
    if not isinstance(given, Mapping):
        raise UserError('Attacks are given by name, as in attacks={"mine": attack}.')
    return {name: _attack(name, attack, threat, eot) for name, attack in given.items()}


def _attack(name: str, given: Any, threat: Threat, eot: int) -> Attack:
    if hasattr(given, "run") and hasattr(given, "threat"):
        return given if is_dataclass(given) else Own(given.threat, given)
    if type(given).__module__.partition(".")[0] == "torchattacks":
        _refuse_another_threat(name, given, threat)
        return Foreign(threat, Library(_settings(given), given), eot, Selection(eot))
    if callable(given) and not isinstance(given, nn.Module | type):
        return Foreign(threat, Adapted(given), eot, Selection(eot), keeps=True)
    raise UserError(
        f"{name} is no attack: give an object with threat and run, one of torchattacks, or a function (model, x, y) → "
        f"images, not {type(given).__name__}."
    )


def _refuse_another_threat(name: str, given: Any, threat: Threat) -> None:
    """Refuses an attack of torchattacks that has an eps, and not that of the threat, or another norm."""
    eps, named = getattr(given, "eps", None), "L2" if "L2" in type(given).__name__ else "Linf"
    norm, asked = str(getattr(given, "norm", named)), type(threat).__name__
    if eps is not None and (norm.lower() != asked.lower() or abs(eps - threat.eps) > 1e-6):
        raise UserError(
            f"{name} is for {norm} eps {eps:.6g}, and this evaluation for {asked} eps {threat.eps:.6g}; make it for "
            "the same threat."
        )


@dataclass(frozen=True)
class Own:
    """An attack of a user's own class."""

    threat: Threat
    inner: Attack

    @property
    def looks(self) -> int:
        return getattr(self.inner, "looks", 1)

    def run(self, victim: Any, x0: Tensor, y: Tensor, rng: Rng) -> Outcome:
        return self.inner.run(victim, x0, y, rng)


@dataclass(frozen=True)
class Adapted:
    """A function (model, x, y) → images, as other libraries' attacks are made."""

    function: Callable[[nn.Module, Tensor, Tensor], Tensor]

    def __call__(self, model: nn.Module) -> Perturb:
        return partial(self.function, model)


@dataclass(frozen=True)
class Library:
    """An attack object of torchattacks, turned to another model; ``settings`` is what it is, for the run's identity."""

    settings: dict
    attack: Any = field(metadata={"role": "runtime"})

    def __call__(self, model: nn.Module) -> Perturb:
        turned = copy.deepcopy(self.attack, {id(self.attack.model): model})
        turned.set_device(next(model.parameters(), torch.empty(0)).device)
        return turned


def _settings(attack: Any) -> dict:
    """The plain values that an attack holds, and those of the attacks that it consists of."""
    held = vars(attack)
    own = {name: value for name, value in held.items() if isinstance(value, bool | int | float | str | None)}
    parts = {name: _settings(part) for name, part in (held.get("_attacks") or {}).items()}
    return {"type": type(attack).__name__, **own, **({"attacks": parts} if parts else {})}
