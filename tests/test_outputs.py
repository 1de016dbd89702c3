"""What classifiers and denoisers return is taken to logits and images, or refused with what to do about it."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import lustral
from components import images, net_denoiser, scramble
from digits import digits
from lustral.classifiers.resnet import ResNet
from lustral.classifiers.small import SmallCNN
from lustral.classifiers.wide import WideResNet
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.core.vote import Majority, MeanLogits
from lustral.defence import defend
from lustral.denoisers.base import Autocast, FixedBatch, Meter
from lustral.denoisers.preconditioning import EDM, NCSN, VPEps, VPredict
from lustral.schedules import VP, DiscreteVP
from lustral.shell.device import OnDevice

X = images(4)
NET = scramble(SmallCNN(width=4, classes=3))
LOGIT = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()


@dataclass
class Output:
    """As transformers' image classifiers return."""

    logits: Tensor
    attentions: None = None


class Mapped(OrderedDict):
    """As its outputs are: a mapping whose items are attributes too, and whose length is that of its fields."""


TAKEN = {
    "an object": lambda x: Output(NET(x)),
    "a mapping": lambda x: Mapped(loss=None, logits=NET(x), hidden=NET.features(x)),
    "first of a tuple": lambda x: (NET(x), {"aux": 1}),
    "the only logits": lambda x: [x, NET(x), x.mean()],
    "under another name": lambda x: {"out": NET(x), "loss": x.mean()},
}


@pytest.mark.parametrize("name", TAKEN)
def test_logits_are_found_where_they_can_be_no_other(name):
    net, expected = TAKEN[name], defend(NET).decide(X, 0)
    assert torch.equal(defend(net).decide(X, 0).logits, expected.logits)
    assert torch.equal(defend(net)(X), expected.logits)
    if name == "the only logits":  # which a wrapper does not know to be some
        with pytest.raises(UserError, match=r"one tensor of logits or images, not a list.*net\(x\)\[0\]"):
            defend(FixedBatch(net, 3)).decide(X, 0)
        return
    meter = Meter()
    for wrapped in (FixedBatch(net, 3), Autocast(net, "float32"), meter.watch(net), OnDevice(net, "cpu")):
        assert torch.allclose(defend(wrapped).decide(X, 0).logits, expected.logits, atol=1e-2)
    assert meter.here.forward == len(X)


REFUSED = {
    "[n]": (lambda x: x.mean(dim=(1, 2, 3)), r"not float32 \[[48]\]; give the one logit.*net\(x\)\[:, None\]"),
    "[n, c, 1, 1]": (lambda x: NET(x)[:, :, None, None], r"not float32 \[[48], 3, 1, 1\].*flatten\(1\)"),
    "[n, c, h, w]": (lambda x: x, r"not float32 \[[48], 1, 8, 8\].*a row of logits for each image"),
    "another batch": (lambda x: NET(x)[:2], r"images, not float32 \[2, 3\]"),
    "labels": (lambda x: NET(x).argmax(dim=1, keepdim=True), r"not int64 \[[48], 1\].*before the argmax"),
    "NumPy": (lambda x: NET(x).numpy(), "not ndarray; return torch tensors"),
    "two logits": (lambda x: (NET(x), NET.features(x)), r"a tuple of float32 \[[48], 3\], float32 .*net\(x\)\[0\]"),
    "nothing": (lambda x: None, "not NoneType"),
    "no class": (lambda x: NET(x)[:, :0], r"not float32 \[[48], 0\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_logits_is_refused_with_the_cure(name):
    net, said = REFUSED[name]
    for call in (defend(net).decide, defend(net).classify, defend(net, vote=Majority(2))):
        with torch.no_grad(), pytest.raises(UserError, match=rf"^A classifier returns logits \[[48], .*{said}"):
            call(X)


@pytest.mark.parametrize("vote", [None, MeanLogits(2), Majority(3)])
def test_one_logit_says_two_classes_by_its_sign(vote):
    defence, z = defend(LOGIT, vote=vote), LOGIT(X)[:, 0]
    x = torch.cat([X[z.argmin()][None], X[z.argmax()][None]])
    with torch.no_grad():
        LOGIT[1].bias -= LOGIT(x).mean()
        verdict = defence.decide(x, 0)
    assert verdict.label.tolist() == [0, 1]
    assert verdict.draws.shape[2] == 2
    if vote is None:
        z = LOGIT(x)[:, 0]
        assert torch.allclose(verdict.logits.softmax(dim=1)[:, 1], z.sigmoid())


def test_one_logit_is_attacked_and_assessed_as_two_classes():
    x = digits(6).x
    with torch.no_grad():
        LOGIT[1].bias -= LOGIT(x).median()
    y = (LOGIT(x)[:, 0] > 0).long()
    attack = lustral.PGD(lustral.Linf(0.5), lustral.exact(), steps=5)
    assert (defend(LOGIT).decide(attack.run(defend(LOGIT), x, y, 0).x, 0).label != y).all()
    data = lustral.Data(torch.arange(6), x, y)
    found = lustral.assess(defend(LOGIT), data, lustral.Linf(0.5), "smoke", allow_red=True)
    accuracy = {row["stage"]: row["accuracy"] for row in found["rows"]}
    assert accuracy["clean"] == 1
    assert accuracy["worst"] == 0


def test_a_probability_is_no_logit():
    """Its sign would say class 1 of everything."""
    for net in (nn.Sequential(LOGIT, nn.Sigmoid()), lambda x: LOGIT(x).sigmoid()):
        with pytest.raises(UserError, match=r"a probability as it seems.*leave the sigmoid out.*torch\.logit"):
            defend(net).decide(X, 0)
    close = X[LOGIT(X)[:, 0].abs().argsort()[:1]]
    with torch.no_grad():
        LOGIT[1].bias += 0.2 - LOGIT(close).item()
    assert defend(LOGIT).decide(close, 0).label.tolist() == [1], "a logit that happens to be in [0, 1]"


def test_a_bare_network_is_no_victim():
    for attack in (lustral.RandomSign(lustral.Linf(0.1), 1), lustral.APGD(lustral.Linf(0.1), lustral.exact(), steps=1)):
        with pytest.raises(UserError, match=r"on a defence, not on SmallCNN; lustral\.defend\(classifier\) makes one"):
            attack.run(NET, X, torch.zeros(4, dtype=torch.long), 0)


def test_a_bare_classifier_is_a_source_of_a_transfer():
    search = lustral.PGD(lustral.Linf(0.2), lustral.exact(), steps=2)
    y = torch.tensor([0, 1, 2, 0])
    given = (lustral.Transfer(search, (source,)) for source in (TAKEN["an object"], defend(NET)))
    found = [attack.run(defend(NET), X, y, 0).x for attack in given]
    assert torch.equal(*found)


class Sampled(nn.Module):
    """As diffusers' networks return, and with a table of whole time steps."""

    def __init__(self, channels: int = 1, table: bool = False):
        super().__init__()
        self.channels, self.table = channels, nn.Embedding(1000, 1) if table else None

    def forward(self, x: Tensor, t: Tensor | None = None) -> object:
        shift = 0 if self.table is None else self.table(t)[:, :, None, None]
        return Mapped(sample=(0.1 * x + shift).repeat(1, self.channels, 1, 1))


def test_a_network_whose_output_is_an_object_is_a_denoiser():
    sigma = torch.full((4,), 0.2)
    for wrap in (EDM, NCSN, lambda net: VPEps(net, VP()), lambda net: VPredict(net, VP())):
        assert torch.equal(wrap(Sampled())(X, sigma), wrap(lambda x, t=None: 0.1 * x)(X, sigma))
    assert torch.equal(VPEps(Sampled(2), VP())(X, sigma), VPEps(Sampled(), VP())(X, sigma)), "a learned variance is cut"


def test_a_discrete_network_is_given_whole_numbers():
    net, schedule = Sampled(table=True).requires_grad_(False).eval(), DiscreteVP.linear()
    denoiser = VPEps(net, schedule, discrete=True)
    t = torch.tensor([100, 1, 1000, 400])
    x, sigma = X, schedule.sigma(t / 1000)
    s = (2 * sigma).view(-1, 1, 1, 1)
    eps = net((2 * x - 1) / torch.sqrt(1 + s**2), t - 1)["sample"]
    assert torch.allclose(denoiser(x, sigma), ((2 * x - 1 - s * eps + 1) / 2).float(), atol=1e-5)
    assert lustral.purify(lustral.diffpure(denoiser, schedule=schedule, steps=2), x, 0).isfinite().all()


def test_diffusers_own_network_and_betas_are_taken_as_they_are():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = diffusers.UNet2DModel(block_out_channels=(8,), **sizes, **kinds).eval()
    schedule = DiscreteVP(diffusers.DDPMScheduler().betas)
    assert schedule.betas == pytest.approx(DiscreteVP.linear().betas, rel=1e-5)
    by_hand = VPEps(lambda x, t: unet(x, t).sample, schedule, discrete=True)
    found, expected = (
        lustral.purify(lustral.diffpure(d, schedule=schedule, steps=2), X, 0)
        for d in (VPEps(unet, schedule, discrete=True), by_hand)
    )
    assert torch.equal(found, expected)
    with pytest.raises(UserError, match="not UNet2DOutput; .*becomes a denoiser by lustral.denoisers.preconditioning"):
        lustral.purify(lustral.diffpure(lambda x, sigma: unet(x, sigma), steps=2), X, 0)


@pytest.mark.parametrize("kind", [tuple, list, torch.tensor, lambda b: torch.tensor(b).double().numpy()])
def test_betas_may_be_of_any_kind(kind):
    betas = [0.1, 0.2, 0.4]
    assert DiscreteVP(kind(betas)).betas == pytest.approx(betas)
    assert hash(DiscreteVP(kind(betas)))
    for wrong in (kind([0.1, 1.5]), kind([[0.1], [0.2]])):
        with pytest.raises(UserError, match="betas"):
            DiscreteVP(wrong)


def test_a_denoiser_that_returns_no_images_is_refused_where_it_is_asked():
    def small(x: Tensor, sigma: Tensor) -> Tensor:
        return x[:, :, :-1]

    makers = (
        lambda d: lustral.diffpure(d, steps=2),
        lambda d: lustral.adp(d, steps=2),
        lambda d: lustral.gdmp(d, steps=2),
    )
    for make in makers:
        for wrong in (small, lambda x, sigma: (x, sigma), lambda x, sigma: Output(x)):
            with pytest.raises(UserError, match=r"A denoiser returns images \[.*lustral.denoisers.preconditioning"):
                lustral.purify(make(wrong), X, 0)
    with pytest.raises(UserError, match=r"A denoiser's network returns images .*not float32 \[4, 2, 8, 8\]"):
        EDM(Sampled(2))(X, torch.full((4,), 0.2))


def test_images_of_another_shape_are_refused_by_name():
    colour = X.repeat(1, 3, 1, 1)
    for net in (ResNet(width=4), WideResNet(depth=10, widen=1)):  # which once took one channel for three
        with pytest.raises(UserError, match=r"takes images with 3 channels, but these have 1\."):
            defend(net.eval()).decide(X, 0)
    for call in (lambda x: defend(NET).decide(x, 0), lambda x: defend(NET)(x), lambda x: defend(NET).bind(0)(x)):
        with pytest.raises(UserError, match=r"The classifier takes images with 1 channels, but these have 3\."):
            call(colour)
    with pytest.raises(UserError, match=r"The denoiser's network takes images with 1 channels, but these have 3\."):
        lustral.purify(lustral.diffpure(net_denoiser(), steps=2), colour, 0)
    with pytest.raises(UserError, match=r"The classifier does not take images of shape \[1, 9, 9\] \(torch: mat1"):
        defend(LOGIT).decide(Key(0).rng(2).uniform(torch.empty(2, 1, 9, 9)), 0)
    search = lustral.PGD(lustral.Linf(0.1), lustral.exact(), steps=1)
    with pytest.raises(UserError, match="takes images with 1 channels"):
        search.run(defend(NET), colour, torch.zeros(4, dtype=torch.long), 0)


def test_other_errors_of_a_network_are_its_own():
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        defend(broken).decide(X, 0)
