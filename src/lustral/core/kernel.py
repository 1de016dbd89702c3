"""The driver, which owns the loop over a purifier's steps."""

from collections.abc import Iterator

from torch import Tensor

from . import check
from .adjoint import Adjoint, Checkpointed
from .inference import differentiable
from .networks import Modes
from .noise import Key, Rng, Veiled, as_rng, veiled
from .purifier import Purifier


def purify(
    purifier: Purifier, x: Tensor, rng: Rng | Key | int | None = None, *, adjoint: Adjoint | None = None
) -> Tensor:
    """Cleans images x ([b, c, h, w] in [0, 1]) and returns images of the same shape.

    ``rng`` is a seed, a Key, an Rng, or None for fresh noise. ``adjoint`` says how the result is differentiated with
    respect to x; the default is exact with one image of memory per step. Gradients with respect to the purifier's own
    weights exist under ``Direct`` only.
    """
    rng = _begun(purifier, x, rng)
    return (adjoint or Checkpointed())(purifier, x, rng)


def _begun(purifier: Purifier, x: Tensor, rng: Rng | Key | int | None) -> Veiled:
    """Says what is wrong with a purifier or images; gives the noise."""
    check.purifier(purifier)
    rng = veiled(as_rng(rng, len(check.images(x))))
    Modes(purifier).check(lambda: Checkpointed()(purifier, x[:2], rng[:2]))
    return rng


def trace(purifier: Purifier, x: Tensor, rng: Rng | Key | int | None = None) -> Iterator[Tensor]:
    """Yields what would be read out after init and after every step: n_steps + 1 batches, for people to look at."""
    rng = _begun(purifier, x, rng)
    init, step = differentiable(purifier.init), differentiable(purifier.step)
    state = init(x, rng.fold("init"))
    yield purifier.readout(state)
    for i in range(purifier.n_steps):
        state = step(i, state, rng.fold("step", i))
        yield purifier.readout(state)
