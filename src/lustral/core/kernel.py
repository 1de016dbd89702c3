"""The driver, which owns the loop over a purifier's steps."""

from collections.abc import Iterator

from torch import Tensor

from . import check
from .adjoint import Adjoint, Checkpointed
from .errors import UserError
from .inference import differentiable
from .networks import Networks, heard, refuse_drawing
from .noise import Key, Rng, Veiled, as_rng, veiled
from .purifier import Purifier


def purify(
    purifier: Purifier, x: Tensor, rng: Rng | Key | int | None = None, *, adjoint: Adjoint | None = None
) -> Tensor:
    """Cleans images x ([b, c, h, w] in [0, 1]) and returns images of the same shape and type.

    ``rng`` is a seed, a Key, an Rng, or None for fresh noise. ``adjoint`` says how the result is differentiated with
    respect to x; the default is exact with one image of memory per step. Gradients with respect to the purifier's own
    weights exist under ``Direct`` only.
    """
    seeded = rng is not None
    at, rng = _begun(purifier, x, rng)
    if not len(x):
        return x
    clean, drew = heard(lambda: (adjoint or Checkpointed())(purifier, at, rng).to(x.dtype))
    if drew and seeded:  # or another thread did
        refuse_drawing(lambda: Checkpointed()(purifier, at[:1], rng[:1]))
    broken = (~clean.isfinite().flatten(1).all(dim=1)).nonzero()[:, 0].tolist()
    if broken:
        raise UserError(check.overflowed(f"images {', '.join(map(str, broken[:5]))} of the batch"))
    return clean


@differentiable
def _begun(purifier: Purifier, x: Tensor, rng: Rng | Key | int | None) -> tuple[Tensor, Veiled]:
    """Says what is wrong with a purifier or images; gives images in the networks' precision, and the noise."""
    check.purifier(purifier)
    rng, networks = veiled(as_rng(rng, len(check.images(x)))), Networks(purifier)
    at = networks.cast(x)
    networks.check(lambda: Checkpointed()(purifier, at[:2], rng[:2]))
    return at, rng


def trace(purifier: Purifier, x: Tensor, rng: Rng | Key | int | None = None) -> Iterator[Tensor]:
    """Yields what would be read out after init and after every step: n_steps + 1 batches, for people to look at."""
    at, rng = _begun(purifier, x, rng)
    if not len(x):
        yield from [x] * (purifier.n_steps + 1)
        return
    init, step = differentiable(purifier.init), differentiable(purifier.step)
    state = init(at, rng.fold("init"))
    yield purifier.readout(state).to(x.dtype)
    for i in range(purifier.n_steps):
        state = step(i, state, rng.fold("step", i))
        yield purifier.readout(state).to(x.dtype)
