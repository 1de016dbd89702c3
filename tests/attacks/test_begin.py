"""What searches are given to attack, and what they say where it is no such thing."""

import pytest
import torch

import lustral
from lustral.attacks.anatomy import summary
from lustral.attacks.composed import Targeted
from lustral.attacks.estimators import Displacement, Joint
from lustral.attacks.gradients import bpda, exact, surrogate
from lustral.attacks.losses import toward
from lustral.attacks.pgd import PGD, RandomSign
from lustral.attacks.search import Restarts
from lustral.attacks.stadv import Flow, StAdv
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.core.threat import L2, Linf
from lustral.defence import defend

X = Key(1).rng(3).uniform(torch.empty(3, 1, 4, 4))
Y = torch.tensor([0, 1, 2])
NOISE = Key(2).rng(3)
DEFENCE = defend(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).requires_grad_(False))
SEARCHES = {
    "pgd": PGD(L2(1.0), exact(), steps=1),
    "apgd": lustral.APGD(Linf(0.1), exact(), steps=1),
    "square": lustral.Square(Linf(0.1), queries=1),
    "stadv": StAdv(Flow(1), exact(), steps=1),
    "random": RandomSign(Linf(0.1), 1),
    "targeted": Targeted(PGD(Linf(0.1), exact(), steps=1, loss=toward), 1),
    "targeted fab": Targeted(lustral.FAB(Linf(0.1), exact(), steps=1), 1),
    "restarts": Restarts(PGD(Linf(0.1), exact(), steps=1), 2),
}
every_search = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())


@every_search
@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (255 * X, Y, r"images to attack must lie in \[0, 1\]"),
        ((255 * X).byte(), Y, "divide 8-bit images by 255"),
        (X[0], Y, "must have 4 axes"),
        (X, Y.int(), "an int64 label for each of the 3 images"),
        (X, Y[:2], "an int64 label for each of the 3 images"),
        (X, Y.tolist(), "an int64 label for each of the 3 images"),
    ],
    ids=["range", "bytes", "axes", "int32", "too few", "a list"],
)
def test_what_cannot_be_attacked_is_said(search, x, y, said):
    with pytest.raises(UserError, match=said):
        search.run(DEFENCE, x, y, NOISE)


@every_search
def test_a_seed_is_noise_too(search):
    found = [search.run(DEFENCE, X, Y, rng).x for rng in (5, Key(5), Key(5).rng(3))]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_negative_patience_is_refused():
    with pytest.raises(UserError, match="patience is 0"):
        lustral.Square(Linf(0.1), queries=1, patience=-1).run(DEFENCE, X, Y, NOISE)


def test_a_flow_wider_than_the_image_still_knows_what_it_cannot_reach():
    with pytest.raises(UserError, match="whole number"):
        Flow(float("nan"))
    grey = torch.full((1, 1, 4, 4), 0.5)
    assert float(Flow(8).distance(torch.ones_like(grey), grey)) > 8


def test_restarts_are_those_of_the_search_and_not_of_a_purifier():
    denoiser = lustral.denoiser("digits-unet")
    reference = lustral.reference("digits-unet", "single")
    purifier = lustral.ssni(lustral.diffpure(denoiser, 0.1, "ddpm", steps=2), reference)
    for gradient in (surrogate(purifier), Joint(bpda(), Displacement(purifier))):
        assert summary(PGD(Linf(0.1), gradient, steps=2))["restarts"] == 1


class Crowded:
    """A purifier without memory for more than two images."""

    n_steps = 1

    def init(self, x, rng):
        if len(x) > 2:
            raise torch.OutOfMemoryError("full")
        return x + 0.1 * rng.normal(x)

    def step(self, i, state, rng):
        return state

    def readout(self, state):
        return state


CROWDED = {"spsa": lustral.SPSA(2), "joint": Joint(bpda(2), Displacement(Crowded(), 2))}


@pytest.mark.parametrize("estimator", CROWDED.values(), ids=CROWDED.keys())
def test_estimators_take_fewer_images_where_memory_is_short(estimator):
    crowded = defend(DEFENCE.classifier, Crowded())
    search = PGD(Linf(0.1), estimator, steps=1)
    assert search.run(crowded, X, Y, NOISE).x.shape == X.shape
