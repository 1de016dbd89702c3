"""The certificate measures what it says, on defences for which the answer is known."""

import pytest
import torch
from torch import Tensor, nn

from components import SHAPE, gaussian_mixture, images, net_denoiser
from lustral.attacks.apgd import APGD
from lustral.attacks.gradients import Gradient
from lustral.attacks.losses import margin
from lustral.attacks.pgd import RandomSign
from lustral.core.noise import Key
from lustral.core.threat import Linf
from lustral.defence import Defence
from lustral.evaluate import certificate
from lustral.evaluate.binarise import Features, binarise
from lustral.evaluate.certificate import certify
from lustral.evaluate.protocol import Data, System
from lustral.purifiers.compose import from_function
from lustral.purifiers.presets import diffpure

KEY = Key(7)
WEIGHTS = Key(2).rng(3).normal(torch.empty(3, *SHAPE)).flatten(1)
DATA = Data(torch.arange(6), images(6), torch.tensor([0, 1, 2, 0, 1, 2]))


def classifier(x: Tensor) -> Tensor:
    return 3 * torch.tanh(x.flatten(1) @ WEIGHTS.T.to(x) / 4)


def linear() -> nn.Module:
    """A linear classifier whose features are the pixels."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        net[1].weight.copy_(WEIGHTS)
        net[1].bias.zero_()
    return net.requires_grad_(False)


def measured(purifier=None, classify=classifier, random: bool = False, eps: float = 0.1) -> dict:
    system = System("s", Defence(classify, purifier), random=random)
    return certify(system, DATA, Linf(eps), KEY, eot=4, thorough=False)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(certificate, "DIRECTIONS", 8)


def test_a_sound_defence_with_noise_has_a_clean_certificate():
    found = measured(diffpure(net_denoiser(), 0.1, "sde", steps=3), random=True)
    assert found["replays"]
    assert found["random"]
    assert found["replays_states"]
    assert found["replays_addresses"]
    assert found["autograd"] == 0
    assert found["finite_difference"] < 1e-6
    assert found["gradient_zero"] == 0
    assert found["neighbours"] < 1e-5
    assert 0 < found["cosine_bpda"] < 1
    assert [draws for draws, _ in found["agreement"]] == [2, 4, 8]
    assert [steps for steps, _ in found["norms"]] == [1, 3]


def test_a_purifier_without_noise_is_seen_to_have_none():
    found = measured(from_function(lambda x: x - 0.1 * torch.sin(6 * x)))
    assert not found["random"]
    assert "agreement" not in found


def test_noise_that_only_attacked_images_meet_is_seen():
    """A detector lets through what lies on the grid of 8-bit pixels, as clean images do."""

    def gated(x, rng):
        off = ((255 * x) % 1).flatten(1).amax(dim=1) > 1e-3
        return torch.where(off.view(-1, 1, 1, 1), x + 0.1 * rng.normal(x), x)

    grid = DATA._replace(x=(DATA.x * 255).round() / 256)  # exact in binary: 255 times a pixel is no whole number
    assert measured(from_function(gated))["random"]
    clean = grid._replace(x=torch.zeros_like(DATA.x))
    assert certificate.draws_noise(Defence(classifier, from_function(gated)), clean, Linf(0.1))
    assert not certificate.draws_noise(Defence(classifier, from_function(gated)), clean, Linf(1.0))  # back on the grid


def test_hidden_noise_is_seen():
    torch.manual_seed(0)
    found = measured(from_function(lambda x: x + 0.1 * torch.randn_like(x)))
    assert not found["replays"]
    assert not found["replays_states"]


def test_a_gradient_that_is_not_that_of_what_runs_is_seen():
    """A straight-through rounding pretends to be the identity; half of the gradient is cut in the other one."""
    straight = measured(from_function(lambda x: x + ((x * 4).round() / 4 - x).detach()))
    cut = measured(from_function(lambda x: 0.5 * x + (0.5 * x).detach()))
    assert straight["finite_difference"] > 0.5
    assert cut["finite_difference"] > 0.3  # the quotient is twice the gradient's


def test_a_kink_beside_an_image_is_no_error():
    """3e-6 away: a difference over 1e-5 crosses it."""
    bent = Defence(classifier, from_function(lambda x: x + 0.5 * (x - DATA.x.to(x) - 3e-6).abs()))
    assert certificate.finite_difference(bent, DATA, KEY) < 1e-6


def test_missing_gradients_are_counted_and_do_not_stop_the_measurement():
    assert measured(from_function(lambda x: (x * 4).round() / 4))["gradient_zero"] == 1
    assert measured(from_function(lambda x: x.detach()))["gradient_zero"] == 1


def test_neighbours_that_matter_are_seen():
    assert measured(classify=lambda x: classifier(x - x.mean(dim=0, keepdim=True)))["neighbours"] > 1e-2


def test_probabilities_are_told_from_logits():
    assert not measured()["probabilities"]
    assert measured(classify=lambda x: classifier(x).softmax(dim=1))["probabilities"]


def test_a_ripple_is_rough_and_a_linear_classifier_is_not():
    smooth = measured(from_function(lambda x: 0.9 * x), linear(), eps=0.01)["roughness"]
    rough = measured(from_function(lambda x: x + 0.5 * torch.sin(300 * x)), linear(), eps=0.01)["roughness"]
    assert rough > 3 * smooth


def test_purification_is_described_as_it_is():
    found = measured(from_function(lambda x: torch.where(x > 0.5, 1.0, x)))
    purified = torch.where(DATA.x > 0.5, 1.0, DATA.x)
    assert found["moved"] == pytest.approx(float((purified - DATA.x).square().mean().sqrt()))
    assert found["clipped"] == pytest.approx(float((purified == 1).float().mean()))
    labels = classifier(DATA.x).argmax(dim=1) != classifier(purified).argmax(dim=1)
    assert found["drift"] == pytest.approx(float(labels.float().mean()))


def test_the_gradient_of_an_exact_denoiser_shrinks_as_its_jacobian_says():
    """Of one Gaussian, the posterior mean's Jacobian is v/(v + sigma²), so the norms are its powers."""
    data = gaussian_mixture()
    one = type(data)(data.means[:1], data.variances[:1], data.weights[:1])
    factor = float(data.variances[0] / (data.variances[0] + 0.2**2))
    found = measured(from_function(lambda x: one(x, x.new_full((len(x),), 0.2)), steps=4))
    lengths = dict(found["norms"])
    assert lengths[4] / lengths[1] == pytest.approx(factor**3, rel=1e-4)


def test_binarisation_finds_what_a_working_attack_finds_and_a_blind_one_does_not():
    system = System("s", Defence(linear()), random=False)
    null = RandomSign(Linf(0.1), 10)
    working = APGD(Linf(0.1), Gradient(None), margin, 20)
    found = binarise(system, DATA, Linf(0.1), working, null, KEY)
    assert found.images >= 4
    assert found.attack == 1
    assert binarise(system, DATA, Linf(0.1), null, null, KEY).attack < 0.5


def test_binarisation_keeps_to_the_lanes_of_the_defence():
    rows = []

    def net(x):
        rows.append(len(x))
        return classifier(x)

    null, wide = RandomSign(Linf(0.1), 2), Defence(classifier, from_function(lambda x, rng: x + 0.01 * rng.normal(x)))
    narrow = Defence(net, wide.purifier, lanes=16)
    found = [binarise(System("s", d, random=True), DATA, Linf(0.1), null, null, KEY) for d in (narrow, wide)]
    assert found[0] == found[1]
    assert max(rows) <= 16


def test_binarisation_of_a_single_class_says_that_there_is_nothing_to_say():
    null, alike = RandomSign(Linf(0.1), 2), DATA._replace(y=torch.zeros_like(DATA.y))
    assert binarise(System("s", Defence(linear()), random=False), alike, Linf(0.1), null, null, KEY) == (0, None, None)


class Calling(nn.Module):
    """A module that calls some of its parts."""

    def __init__(self, parts: nn.Module, call):
        super().__init__()
        self.parts, self.call = parts, call

    def forward(self, x):
        return self.call(x)


def test_features_are_what_the_last_linear_layer_takes_in():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    assert torch.equal(Features(net)(DATA.x), net[:3](DATA.x))
    assert torch.equal(Features(classifier)(DATA.x), classifier(DATA.x))
    net.unused = nn.ModuleList([nn.Linear(7, 7)])  # as a model of images and texts has one
    forward = nn.Sequential(*list(net)[:4]).forward
    assert torch.equal(Features(Calling(net, forward))(DATA.x), net[:3](DATA.x))
