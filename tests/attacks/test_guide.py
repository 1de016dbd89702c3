"""The classifier that guides a purifier is a victim of its own."""

import torch

import lustral
from components import Smooth, images, net_denoiser
from digits import digits
from lustral.attacks.apgd import APGD
from lustral.attacks.gradients import exact
from lustral.attacks.guide import guides
from lustral.attacks.losses import margin
from lustral.core.noise import Key
from lustral.core.threat import Linf
from lustral.defence import Defence
from lustral.denoisers.base import Meter
from lustral.evaluate import suites
from lustral.evaluate.protocol import System
from lustral.purifiers.compose import Pinned, chain, from_function, when
from lustral.purifiers.presets import agdm, diffpure, gdmp

KEY, THREAT = Key(3), Linf(0.1)


def test_a_guide_is_found_wherever_it_guides_and_once():
    net, denoiser, x = Smooth(), net_denoiser(), images(3, dtype=torch.float64)
    for guided in (agdm(denoiser, net, steps=2), agdm(denoiser, net, steps=2, rounds=3)):
        (found,) = guides(guided)
        assert torch.equal(found.logits(x, KEY.rng(3)), net.head(net.features(x)))
    for other, count in ((net, 1), (Smooth(), 2)):
        both = chain(*(agdm(denoiser, guide, steps=2).stages[0] for guide in (net, other)))
        assert len(guides(both)) == count
    alone = agdm(denoiser, net, steps=2)
    for wrapped in (Pinned(alone, KEY), chain(alone, from_function(torch.sqrt)), when(lambda x: x > 0, alone)):
        assert len(guides(wrapped)) == 1
    for plain in (None, diffpure(denoiser, steps=2), gdmp(denoiser, steps=2)):
        assert guides(plain) == ()


def test_the_suites_transfer_from_the_guide_too():
    def sources(purifier) -> int:
        system = System("some", Defence(lustral.classifier("digits-cnn"), purifier), Meter())
        found = {job.stage.name: job.stage.attack for job in suites.jobs("smoke", [system], THREAT, 8)}
        return len(found["transfer"].sources)

    assert sources(diffpure(net_denoiser(), steps=2)) == 2
    assert sources(agdm(net_denoiser(), Smooth(), steps=2)) == 3


def test_what_fools_a_strong_guide_fools_the_system():
    """The verdict that guides is an argmax: no gradient passes it, but whoever fools the guide chooses the verdict."""
    some, net = digits(16), lustral.classifier("digits-trades")
    purifier = agdm(lustral.denoiser("digits-unet"), net, solver="ddpm", steps=3)
    system = Defence(lustral.classifier("digits-cnn"), purifier)
    (guide,) = guides(purifier)
    found = APGD(Linf(0.5), exact(1), margin, 10).run(guide, some.x, some.y, KEY.rng(some.ids)).x
    verdict = net(found).argmax(dim=1)
    assert (verdict == some.y).float().mean() < 0.2
    label = system.decide(found, KEY.fold("judge").rng(some.ids)).label
    assert (label == verdict).float().mean() > 0.8
