"""The names that ship with Lustral, for use in Python."""

from pathlib import Path

from torch import nn

from ..core.errors import unknown
from ..defence import Defence
from ..evaluate.protocol import Data
from ..purifiers.sample_specific import Reference
from . import build, config, systems, weights
from . import device as devices
from .images import data as datasets


def data(name: str | Path, split: str = "test") -> Data:
    """Labelled images ``.ids``, ``.x`` ([n, c, h, w] in [0, 1]) and ``.y``: a set's name, a folder, an .npz file, …

    ``split`` is test, train, validation or fit; the names and the files are those of ``lustral evaluate --data``.
    """
    return datasets.load(str(name), split)


def load(name: str | Path) -> nn.Module:
    """The frozen classifier or denoiser that a name, a path or an address (…/NAME.json#sha256=…) means."""
    return weights.load(str(name), weights.card(weights.find(str(name))).kind)[0]


def classifier(name: str | Path) -> nn.Module:
    """A frozen classifier (images in [0, 1] → logits): a name from ``lustral list``, or a file with its card."""
    return weights.load(str(name), "classifier")[0]


def denoiser(name: str | Path) -> nn.Module:
    """A frozen denoiser D(x, sigma): a name from ``lustral list`` or a file with its card."""
    return weights.load(str(name), "denoiser")[0]


def reference(name: str | Path, norm: str = "eps") -> Reference:
    """The score norms of clean images that a denoiser's card holds, for ``ssni``: ``eps`` or ``single``."""
    return systems.reference(weights.load(str(name), "denoiser")[1], norm)


def recommended(name: str, device: str = "cpu") -> Defence:
    """The defence that is recommended for a data set, in float32: images in [0, 1] → logits.

    Its configuration is the file that ``lustral list`` names, which ``lustral evaluate --config`` measures.
    """
    known = config.recommended()
    if name not in known:
        raise unknown("recommendation", name, known)
    devices.check(device)
    options = config.read(known[name])
    return build.system(name, options.purification, options.classification, device=device).defence
