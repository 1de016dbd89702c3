"""A defence: a classifier behind a purifier. The object that users hold."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .core import check, outputs
from .core.adjoint import Adjoint, Checkpointed
from .core.errors import UserError
from .core.inference import differentiable
from .core.lanes import Lanes, gather, in_parts
from .core.networks import Modeless, Networks, aside, modules_in, refuse_drawing, same
from .core.noise import Key, Mixed, Rng, Veiled, as_key, as_rng, veiled
from .core.purifier import Purifier
from .core.vote import ABSTAIN, Single, Vote
from .core.whole import whole
from .export import Exportable, Fixed

Classifier = Callable[[Tensor], Tensor]


class Verdict(NamedTuple):
    """A decision per image: its label [b] (-1: abstained), merged logits [b, classes] and those of every draw."""

    label: Tensor
    logits: Tensor
    draws: Tensor


FAR = 32.0
"""A value that no purified image in [0, 1] reaches, however much noise is left in it."""


class Defence(Modeless):
    """Purify, classify, vote.

    Called like any torch module it returns logits, with fresh noise at every call, in every copy and every process (the
    n-th call of a process can be replayed where ``key`` is given). ``logits`` and ``decide`` take addressed noise;
    ``bind`` fixes it.
    """

    def __init__(
        self,
        classifier: Classifier,
        purifier: Purifier | None = None,
        vote: Vote | None = None,
        *,
        adjoint: Adjoint | None = None,
        key: Key | None = None,
        lanes: int = 1024,
    ):
        """``purifier`` None is an undefended classifier. ``vote`` defaults to a single draw.

        ``adjoint`` is how it is differentiated; one that changes the purification too (``Skip``, ``Surrogate``) does so
        only where gradients are asked for, and verdicts never see it. At most ``lanes`` rows (images × draws) are
        computed at a time, fewer where memory does not suffice.

        Networks must be in evaluation mode, or say the same in training mode. A defence has no mode of its own:
        ``train`` changes nothing, and nothing that is done to its mode reaches them.
        """
        super().__init__()
        if not callable(classifier):
            raise UserError(f"A classifier is a callable from images to logits, not {type(classifier).__name__}.")
        if purifier is not None:
            check.purifier(purifier)
        if isinstance(vote, type) or not hasattr(vote or Single(), "merge"):
            raise UserError(f"A vote is an object such as lustral.MeanLogits(10), not {vote!r}.")
        self.classifier, self.purifier, self.vote = classifier, purifier, vote or Single()
        if whole(lanes, "A defence's lanes") < 1:
            raise UserError(f"A defence needs at least 1 lane, not {lanes}.")
        self.adjoint, self.lanes = adjoint or Checkpointed(), int(lanes)
        if not isinstance(key, Key | None):
            raise UserError(f"A defence's key is a lustral.Key, not {key!r}; lustral.Key(0) is that of seed 0.")
        self._key, self._calls = key, 0
        wrapped = [] if isinstance(classifier, nn.Module) else modules_in(classifier)
        for i, module in enumerate([*wrapped, *modules_in(purifier)]):
            self.add_module(f"inner_{i}", module)
        self._purifying, self._judging = Networks(purifier), Networks(classifier)
        self._repeats, self._looked = not (self._purifying.foreign or self._judging.foreign), False
        self._purifying.refuse()
        self._judging.refuse()

    @differentiable
    def draws(self, x: Tensor, rng: Rng | Key | int | None, adjoint: Adjoint | None = None) -> Tensor:
        """Logits [b, classes] of one purification per row of x ([b, c, h, w] in [0, 1]) under the noise of ``rng``.

        Images are purified and classified in the precision of the networks, whatever their own.
        """
        rng = as_rng(rng, len(x))
        if not len(x):
            return self.classify(x.new_zeros(1, *x.shape[1:]))[:0]
        self._check_modes(x, rng)
        return self._draws(x, rng, adjoint)

    def _check_modes(self, x: Tensor, rng: Rng) -> None:
        for networks in (self._purifying, self._judging):
            networks.check(lambda: self._draws(x[:2], rng[:2]))

    def _draws(self, x: Tensor, rng: Rng, adjoint: Adjoint | None = None) -> Tensor:
        clean = x
        if self.purifier is not None:
            own = self.adjoint if torch.is_grad_enabled() else Checkpointed()
            at = self._purifying.cast(x)
            clean = Lanes(self.lanes, adjoint or own)(self.purifier, at, veiled(rng.fold("purify")))
        found = gather(in_parts(lambda part: self.classify(clean[part]), torch.arange(len(x)), self.lanes))
        return found.to(torch.promote_types(found.dtype, x.dtype))

    def classify(self, x: Tensor) -> Tensor:
        """Logits [b, classes] of the classifier alone, on images that nothing purifies."""
        at = self._judging.cast(x)
        out = outputs.asked("The classifier", self.classifier, at)
        if not self._looked:
            self._look(out, at)
        return outputs.logits(out, len(x))

    def _look(self, out: Any, x: Tensor) -> None:
        """Refuses, once, images far out of range, and a classifier of two classes that says a probability.

        Its sign would always be one class.
        """
        if len(x) and float(x.detach().abs().max()) > FAR:
            raise UserError(
                f"What the classifier gets spans [{float(x.min()):.4g}, {float(x.max()):.4g}]; a purifier returns "
                "images in [0, 1], like those that it is given."
            )
        with aside():
            if outputs.probabilities(out, self.classifier, x):
                raise UserError(
                    "This classifier says one number of every image that is never below 0, a probability as it seems, "
                    "but one number is taken for a logit, whose sign decides; leave the sigmoid out, or return its "
                    "torch.logit."
                )
        self._looked = True

    def logits(self, x: Tensor, rng: Rng | Key | int | None, adjoint: Adjoint | None = None) -> Tensor:
        """Merged logits [b, classes] of one decision per row, each of ``vote.draws`` purifications in one batch."""
        n, rng = self.vote.draws, as_rng(rng, len(x))
        out = (
            self.draws(x.repeat_interleave(n, dim=0), rng.repeat(n), adjoint) if n > 1 else self.draws(x, rng, adjoint)
        )
        return self.vote.merge(out.unflatten(0, (len(x), n)))

    def label(self, merged: Tensor) -> Tensor:
        """What merged logits [b, classes] decide, [b] (-1: abstained, as always where one is NaN)."""
        return torch.where(merged.isnan().any(dim=1), ABSTAIN, self.vote.label(merged))

    @differentiable
    def repeats(self, x: Tensor, rng: Rng | Key | int) -> None:
        """Says it, once asked to repeat itself, where this defence says two things of an image under the same noise."""
        if self._repeats or not len(x):
            return
        few, noise = x[:1], as_rng(rng, len(x))[:1]
        self._check_modes(few, noise)
        first, again = refuse_drawing(lambda: self._draws(few, noise))
        if not same(first, again):
            raise UserError(
                "This defence says two things of the same image under the same noise: take all noise from the rng that "
                "a purifier is given and none from torch or dropout, or ask without a seed."
            )
        self._repeats = True

    @torch.no_grad()
    def decide(self, x: Tensor, rng: Rng | Key | int | None = None) -> Verdict:
        """The verdict on images x, with every draw's logits [b, draws, classes]."""
        n, seeded = self.vote.draws, rng is not None
        rng = as_rng(rng, len(check.images(x)))
        if seeded:
            self.repeats(x, rng)
        draws = self.draws(x.repeat_interleave(n, dim=0), rng.repeat(n)).unflatten(0, (len(x), n))
        merged = self.vote.merge(draws)
        return Verdict(self.label(merged), merged, draws)

    def bind(self, rng: Rng | Key | int | None) -> "Bound":
        """The deterministic module whose noise is ``rng`` at every call (a deterministic white box for any attack).

        With None it is noise that nobody knows, the same at every call; a copy has noise of its own, and so has what
        a pickle gives back, since a secret is not written down.
        """
        return Bound(self, rng)

    def exportable(self, like: Tensor, rng: Rng | Key | int | None = None) -> Exportable | Fixed:
        """The same for ``torch.export``, ONNX and ``torch.compile``: nothing in it looks at the images' values.

        It is for batches of the size and shape of ``like`` [b, c, h, w]. With ``rng`` it is ``net(x)``, whose noise is
        that of ``bind(rng)``; without, ``net(x, *noise)``. Purifiers that decide by the images what to compute (ADP,
        SSNI, ``when``) or differentiate (guidance) are refused.
        """
        self.decide(like, 0)  # which says what is wrong with images or networks
        net = Exportable(self.classifier, self.purifier, self.vote, self._judging.cast(self._purifying.cast(like)))
        return net if rng is None else Fixed(net, net.noise(rng))

    def forward(self, x: Tensor) -> Tensor:
        check.images(x, slack=0.5)  # searches of other libraries look at neighbours of images, also outside the range
        self._calls += 1
        if self._key is None:
            return self.logits(x, Key.secret())  # of this call alone: no fork, copy or pickle has it
        rng = self._key.fold("call", self._calls).rng(len(x))
        self.repeats(x, rng)
        return self.logits(x, rng)


class Bound(Modeless):
    """A defence with its noise fixed by row number, or by the ids of the ``Rng`` that it was bound to."""

    def __init__(self, defence: Defence, rng: Rng | Key | int | None):
        super().__init__()
        self.defence, self._secret = defence, rng is None
        self.rng = rng if isinstance(rng, Rng | Mixed | Veiled) else as_key(rng)

    def __getstate__(self) -> dict:
        return self.__dict__ | ({"rng": None} if self._secret else {})

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state | ({"rng": Key.secret()} if state["_secret"] else {}))

    def forward(self, x: Tensor) -> Tensor:
        rng = as_rng(self.rng, len(check.images(x, slack=0.5)))
        if len(rng) != len(x):
            raise UserError(f"This defence is bound to the noise of {len(rng)} images but was called with {len(x)}.")
        self.defence.repeats(x, rng)
        return self.defence.logits(x, rng)


def defend(
    classifier: Classifier, purifier: Purifier | Callable | None = None, vote: Vote | None = None, **options
) -> Defence:
    """Puts a purifier (or a plain function of images) in front of a classifier; options as in ``Defence``."""
    if hasattr(purifier, "sigma_max") and not isinstance(purifier, Purifier):
        raise UserError("That is a denoiser; make a purifier of it, for example lustral.diffpure(denoiser).")
    if purifier is not None and not isinstance(purifier, Purifier) and callable(purifier):
        from .purifiers.compose import from_function

        purifier = from_function(purifier)
    return Defence(classifier, purifier, vote, **options)
