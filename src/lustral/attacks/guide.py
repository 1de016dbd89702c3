"""Classifiers inside a purifier as victims: a verdict that guides has no gradient, but it can be fooled."""

from ..core.purifier import Purifier
from ..defence import Defence
from ..purifiers.compose import Chain
from ..purifiers.diffusion import Diffusion
from ..purifiers.guided import Robust


def guides(purifier: Purifier | None) -> tuple[Defence, ...]:
    """The classifiers that guide a purifier (AGDM), each once, as undefended victims."""
    stages = purifier.stages if isinstance(purifier, Chain) else (purifier,)
    found = (stage.guidance for stage in stages if isinstance(stage, Diffusion) and isinstance(stage.guidance, Robust))
    return tuple(Defence(guide.classify) for guide in {id(guide.classifier): guide for guide in found}.values())
