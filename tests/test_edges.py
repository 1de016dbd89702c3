"""Images of any float type and none at all, into every purifier, vote and attack."""

import pytest
import torch
from torch import nn

import lustral
from components import PURIFIERS, images, net_denoiser
from lustral.attacks.losses import toward
from lustral.core.adjoint import Checkpointed
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.core.threat import L1, L2, Linf
from lustral.core.vote import Abstain, Majority, MeanLogits, MeanSoftmax, Single
from lustral.defence import defend
from lustral.evaluate.certificate import in_float64
from lustral.shell import interop

X, Y = images(3), torch.tensor([0, 1, 2])
NONE = X[:0]
NET = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval().requires_grad_(False)
VOTES = [Single(), MeanLogits(2), MeanSoftmax(2), Majority(3), Abstain(MeanSoftmax(2), 0.1)]
T, EXACT = Linf(0.1), lustral.exact()
ART = {"image_shape": (1, 8, 8), "classes": 3, "eps_step": 0.05, "max_iter": 1}
AUTO = {"version": "custom", "attacks": ["apgd-ce"], "settings": {"apgd.n_iter": 1, "apgd.n_restarts": 1}}
ATTACKS = {
    "pgd": lambda: lustral.PGD(T, EXACT, steps=1, select=lustral.Selection()),
    "pgd in L2": lambda: lustral.PGD(L2(1.0), lustral.bpda(2), steps=1),
    "pgd in L1": lambda: lustral.PGD(L1(2.0), EXACT, steps=1, momentum=0.5),
    "apgd": lambda: lustral.APGD(T, EXACT, steps=1),
    "square": lambda: lustral.Square(T, queries=2),
    "fab": lambda: lustral.Targeted(lustral.FAB(T, EXACT, steps=1), 2),
    "targeted": lambda: lustral.Targeted(lustral.PGD(T, EXACT, steps=1, loss=toward), 1),
    "restarts": lambda: lustral.Restarts(lustral.PGD(T, EXACT, steps=1), 2),
    "spsa": lambda: lustral.PGD(T, lustral.SPSA(2), steps=1),
    "growing": lambda: lustral.PGD(T, lustral.Growing(Checkpointed()), steps=1),
    "low pass": lambda: lustral.PGD(T, lustral.LowPass(EXACT, 0.5), steps=1),
    "null": lambda: lustral.RandomSign(T, 2),
    "stadv": lambda: lustral.StAdv(lustral.Flow(1), EXACT, steps=1),
    "transfer": lambda: lustral.Transfer(lustral.PGD(T, EXACT, steps=1), (NET,)),
    "torchattacks": lambda: interop.torchattacks_attack("PGD", T, steps=1),
    "foolbox": lambda: interop.foolbox_attack("LinfPGD", T, steps=1),
    "art": lambda: interop.art_attack("ProjectedGradientDescent", T, **ART),
    "pyautoattack": lambda: interop.autoattack_attack(T, **AUTO),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["ddim", "adp", "gdmp", "ssni", "per-sample", "when", "chain", "function"])
def test_images_of_any_float_type_are_purified_in_the_networks_own(name, dtype):
    purifier, x = PURIFIERS[name](net_denoiser()), X.to(dtype)
    found, expected = lustral.purify(purifier, x, 0), lustral.purify(purifier, x.float(), 0)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, atol=4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6)
    assert {frame.dtype for frame in lustral.trace(purifier, x, 0)} == {dtype}
    defence = defend(NET, purifier, MeanLogits(2))
    verdict, same = defence.decide(x, 0), defence.decide(x.float(), 0)
    assert torch.allclose(verdict.logits.float(), same.logits, atol=1e-5)
    assert torch.equal(verdict.label, same.label)
    assert torch.allclose(defence.bind(0)(x).float(), same.logits, atol=1e-5)
    assert defence(x).shape == (3, 3)
    assert verdict.logits.dtype == torch.promote_types(torch.float32, dtype)


def test_gradients_of_float64_images_pass_through_float32_networks():
    x = X.double().requires_grad_()
    defence = defend(NET, PURIFIERS["ddim"](net_denoiser()))
    (grad,) = torch.autograd.grad(defence.bind(0)(x).square().sum(), x)
    (same,) = torch.autograd.grad(defence.bind(0)(y := X.clone().requires_grad_()).square().sum(), y)
    assert grad.dtype == torch.float64
    assert torch.allclose(grad.float(), same, atol=1e-5)


def test_networks_of_two_precisions_work_together_and_are_not_certified_in_float32():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double().eval()
    hidden, narrow = (lambda x: wide(x)), NET
    assert defend(hidden, PURIFIERS["ddim"](net_denoiser())).decide(X, 0).logits.dtype == torch.float64
    data = lustral.Data(torch.arange(3), X, Y)
    assert in_float64(defend(lambda x: narrow(x)), data, Key(0))["finite_difference"] is None, "no copy reaches it"
    assert in_float64(defend(NET), data, Key(0))["finite_difference"] < 1e-3


@pytest.mark.parametrize("name", PURIFIERS)
def test_no_images_are_no_images_to_any_purifier(name):
    purifier = PURIFIERS[name](net_denoiser())
    assert lustral.purify(purifier, NONE, 0).shape == NONE.shape
    assert lustral.purify(purifier, NONE.half(), 0, adjoint=lustral.Lanes(2)).dtype == torch.float16
    assert [frame.shape for frame in lustral.trace(purifier, NONE, 0)] == [NONE.shape] * (purifier.n_steps + 1)


class Picky(nn.Module):
    """As many networks, it does not take an empty batch."""

    def forward(self, x):
        return torch.stack([image.flatten()[:3] for image in x])


@pytest.mark.parametrize("vote", VOTES, ids=str)
def test_no_images_are_no_verdicts(vote):
    for defence in (defend(Picky(), PURIFIERS["sde-steps"](net_denoiser()), vote), defend(NET, vote=vote)):
        verdict = defence.decide(NONE, 0)
        assert verdict.label.shape == (0,)
        assert verdict.logits.shape == (0, 3)
        assert verdict.draws.shape == (0, vote.draws, 3)
        assert defence(NONE).shape == defence.bind(0)(NONE).shape == (0, 3)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_take_no_images_and_float64_and_refuse_what_rounds_beyond_eps(name):
    if name in ("torchattacks", "foolbox", "art", "pyautoattack"):
        pytest.importorskip(name)
    attack, defence = ATTACKS[name](), defend(NET, PURIFIERS["ddim"](net_denoiser()))
    found = attack.run(defence, NONE, Y[:0], 0)
    assert found.x.shape == NONE.shape
    assert found.loss.shape == found.wrong.shape == found.looks.shape == (0,)
    found = attack.run(defence, X.double(), Y, 0)
    assert found.x.dtype == torch.float64
    assert float(attack.threat.distance(found.x, X.double()).max()) <= attack.threat.eps + 1e-6
    for kind in (torch.float16, torch.bfloat16):
        with pytest.raises(UserError, match="must be float32 or float64, not b?float16, which rounds beyond eps"):
            attack.run(defence, X.to(kind), Y, 0)


def test_an_evaluation_takes_images_of_any_float_type():
    data = lustral.Data(torch.arange(3), X.half().float(), Y)
    found = [
        lustral.assess(defend(NET), data._replace(x=x), Linf(0.1), "smoke", allow_red=True)["rows"][0]["accuracy"]
        for x in (data.x, data.x.double(), data.x.half())
    ]
    assert found[0] == found[1] == found[2]


def test_purified_images_that_are_no_numbers_are_refused():
    def overflowing(x):
        return torch.where(x.mean(dim=(1, 2, 3), keepdim=True) > X[1].mean(), torch.nan, x)

    with pytest.raises(UserError, match=r"Purifying images 2 of the batch overflowed; choose weaker guidance"):
        lustral.purify(lustral.from_function(overflowing), X, 0)
    assert defend(NET, overflowing).decide(X, 0).label.tolist()[2] == -1, "a verdict on it is to abstain"


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_shipped_networks_that_are_called_by_hand_take_every_float_type(kind):
    x, sigma = lustral.data("digits").x[:2], torch.full((2,), 0.1)
    net, denoiser = lustral.classifier("digits-cnn"), lustral.denoiser("digits-unet")
    assert (net(x.to(kind)) - net(x)).abs().max() < 0.02 * net(x).abs().max()
    clean = denoiser(x.to(kind), sigma)
    assert clean.dtype == kind
    assert (clean.float() - denoiser(x, sigma)).abs().max() < 0.01
    assert denoiser(x[:0], sigma[:0]).shape == (0, 1, 8, 8)
    for network in (net, lambda x: denoiser(x, sigma)):
        with pytest.raises(lustral.UserError, match="Images are floats in .* not uint8; divide by 255"):
            network((255 * x).byte())
