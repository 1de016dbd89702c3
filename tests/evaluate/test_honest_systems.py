"""Systems that are honest in an unusual way raise no alarm, and what cannot be checked is said."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lustral
from digits import digits
from lustral.attacks.losses import cross_entropy, dlr, dlr_toward, margin, toward
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.defence import Defence, defend
from lustral.evaluate.binarise import Features, RoutedError
from lustral.evaluate.certificate import certify
from lustral.evaluate.findings.base import Evidence
from lustral.evaluate.findings.gradient import finite_difference
from lustral.evaluate.protocol import System
from lustral.shell.options import Resources

THREAT, N = lustral.Linf(3 / 16), 8


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return lustral.classifier("digits-cnn")


class Cast(nn.Module):
    """A network behind a cast, which stays whatever the precision of its weights."""

    def __init__(self, net: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            return self.net(x.to(self.dtype)).to(x.dtype)


class Experts(nn.Module):
    """Every image goes to one of three heads, or of three layers in front, as a gate says."""

    def __init__(self, net: nn.Module, front: bool):
        super().__init__()
        self.net, self.front = net, front
        self.gate = nn.Linear(64, 3)
        width = 64 if front else 10
        self.experts = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        with torch.no_grad():
            self.gate.weight.copy_(Key(3).rng(3).normal(torch.empty(3, 64)))
            for expert in self.experts:
                expert.weight.copy_(torch.eye(width))
                expert.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        which, h = self.gate(x.flatten(1)).argmax(dim=1), x.flatten(1) if self.front else self.net(x)
        for k, expert in enumerate(self.experts):
            rows = (which == k).nonzero()[:, 0]
            h = h.index_copy(0, rows, expert(h[rows])) if len(rows) else h
        return self.net(h.view_as(x)) if self.front else h


class ByMode(nn.Module):
    """Another answer where no gradient is asked for."""

    def __init__(self, net: nn.Module, other: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net, self.other = net, other

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if torch.is_grad_enabled() else self.other(self.net(x))


HONEST: dict[str, Callable[[nn.Module], Defence]] = {
    "float() in a closure": lambda net: defend(lambda x: net(x.float())),
    "float32 inside": lambda net: defend(Cast(net, torch.float32)),
    "bfloat16 inside": lambda net: defend(Cast(net, torch.bfloat16)),
    "float32 in a purifier": lambda net: defend(net, lambda x: 0.9 * x.to(torch.float32) + 0.05),
    "softmax": lambda net: defend(nn.Sequential(net, nn.Softmax(1))),
    "softmax in a closure": lambda net: defend(lambda x: net(x).softmax(dim=1)),
    "twice as sure": lambda net: defend(lambda x: (2 * net(x)).softmax(dim=1)),
    "experts as heads": lambda net: defend(Experts(net, front=False)),
    "experts in front": lambda net: defend(Experts(net, front=True)),
}


def assessed(defence: Defence, suite: str = "smoke") -> dict[str, dict]:
    """The findings of an assessment, by name."""
    found = lustral.assess({"s": defence}, digits(N), THREAT, suite, allow_red=True, resources=Resources(threads=1))
    return {finding["name"]: finding for finding in found["findings"]["s"]}


@pytest.mark.parametrize("name", HONEST)
def test_no_honest_system_is_red(name, net):
    assert {name: f["text"] for name, f in assessed(HONEST[name](net)).items() if f["level"] == "red"} == {}


@pytest.mark.parametrize("error", [0.02, 5.0, float("nan")])
def test_quotients_of_rounding_are_no_proof(error):
    """As deployed some predictions fail, but not surely too many: the copy in float64 decides."""
    deployed = [(1.0, 1.0, 0.0)] * 9 + [(1.0, 2.0, 0.0)] * 3
    for facts, level in (({"rounds": True}, "amber"), ({"rounds": False}, "red"), ({}, "red")):
        certificate = {"finite_difference": error, "deployed": deployed} | facts
        assert finite_difference(Evidence(0.1, 10, False, True, certificate=certificate)).level == level
        certificate = {"finite_difference": error} | facts
        found = finite_difference(Evidence(0.1, 10, False, True, certificate=certificate))
        assert found.level == level
        assert ("lower precision" in found.text) == (level == "amber")
    certificate = {"finite_difference": error, "deployed": deployed, "rounds": False}
    assert (
        finite_difference(Evidence(0.1, 10, False, True, certificate=certificate, probabilities=True)).level == "amber"
    )


def test_a_certificate_says_whether_something_rounds(net):
    for defence, rounds in (
        (defend(net), False),
        (defend(net, lambda x, rng: x + 0.1 * rng.normal(x)), False),
        (HONEST["float32 inside"](net), True),
        (HONEST["float32 in a purifier"](net), True),
    ):
        found = certify(System("s", defence, random=False), digits(N), THREAT, Key(0), thorough=False)
        assert found["rounds"] == rounds
        assert found["finite_difference"] < (1e-2 if rounds else 1e-3), "below what would be red"


def test_what_no_copy_reaches_is_amber_and_said(net):
    found = assessed(defend(lambda x: net(x)))["finite-difference"]
    assert found["level"] == "amber"
    assert "No copy in float64 could be made" in found["text"]
    silent = finite_difference(Evidence(0.1, 10, False, True, certificate={"finite_difference": None, "deployed": []}))
    assert (silent.level, "nothing could be measured" in silent.text) == ("amber", True)
    assert finite_difference(Evidence(0.1, 10, False, True)) is None


def test_sure_probabilities_have_the_gradient_of_their_logarithms(net):
    data, y = digits(N), digits(N).y
    pairs = torch.stack([y, (y + 1) % 10], dim=1)
    x = data.x.requires_grad_()
    logits = net(x)
    assert (logits.softmax(dim=1).amax(dim=1) == 1).sum() > 3, "saturated"
    for loss, labels in ((margin, y), (cross_entropy, y), (dlr, y), (toward, pairs), (dlr_toward, pairs)):
        wanted, found = (loss(z, labels) for z in (logits, logits.softmax(dim=1)))
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
        grads = [torch.autograd.grad(z.sum(), x, retain_graph=True)[0] for z in (wanted, found)]
        if loss is not cross_entropy:  # whose gradient vanishes on logits too
            assert torch.allclose(grads[1], grads[0], rtol=1e-3, atol=1e-3 * float(grads[0].abs().max()))
    almost = torch.tensor([[0.5, 0.6, -0.1], [2.0, 3.0, 4.0], [0.2, 0.3, 0.6]])
    assert torch.allclose(margin(almost, torch.tensor([0, 1, 2])), torch.tensor([0.1, 1.0, -0.3]))


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_binarisation_test_takes_a_mixture_of_experts(front, noise, net):
    purifier = (lambda x, rng: x + noise * rng.normal(x)) if noise else None
    system = System("s", defend(Experts(net, front), purifier), random=noise > 0)
    found = certify(system, digits(4), THREAT, Key(0), eot=1)["binarisation"]
    assert (found["images"], found["attack"]) == (4, 1.0)


def test_features_are_of_one_layer_or_say_so(net):
    features, experts = Features(Experts(net, front=False)), Experts(net, front=False)
    with pytest.raises(RoutedError):
        [features(digits(8).x[k:]) for k in range(8)]
    assert torch.equal(Features(experts, routed=True)(digits(8).x), experts(digits(8).x))


def test_another_answer_without_gradients_is_a_finding_in_every_suite(net):
    other = nn.Linear(10, 10)
    for answer in (lambda z: -z, torch.zeros_like, other):
        findings = assessed(defend(ByMode(net, answer)), "standard")
        assert findings["asked-alike"]["level"] == "red"


def test_other_classes_without_gradients_are_a_sentence(net):
    for classes, answer in ((5, lambda z: z[:, :5]), (1, lambda z: z[:, :1] - z[:, :1].amax())):
        says = {5: "says 10 classes where gradients are on and 5 where", 1: "says 10 classes .* 2 where"}[classes]
        with pytest.raises(UserError, match=says):
            certify(System("s", defend(ByMode(net, answer)), random=False), digits(4), THREAT, Key(0))


def median(x: Tensor) -> Tensor:
    """Of every 3×3 neighbourhood, reflected at the border."""
    around = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1)
    return around.flatten(4).median(dim=4).values


def test_a_median_of_pixels_that_are_equal_has_the_gradient_that_it_says(net):
    """At images of few grey levels it has none: a quotient there goes from one pixel to another."""
    found = certify(System("s", defend(net, median), random=False), digits(N), THREAT, Key(0), thorough=False)
    assert found["finite_difference"] < 1e-2, "below what would be red"


def test_a_network_that_says_no_number_somewhere_is_a_finding_and_costs_no_run(net):
    bright = float(digits(4).x.flatten(1).mean(dim=1).max()) - 1e-4

    def somewhere(x: Tensor) -> Tensor:
        return torch.where((x.flatten(1).mean(dim=1) > bright)[:, None], torch.nan, net(x))

    said = lustral.assess(defend(somewhere), digits(4), lustral.Linf(0.08), "smoke", resources=Resources(threads=1))
    assert "defence" in said["withheld"]
    assert any(f["level"] == "red" and "finite" in f["text"] for f in said["findings"]["defence"])


def test_a_scripted_network_is_assessed():
    made = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval())
    said = lustral.assess(defend(made), digits(2), lustral.Linf(0.08), "smoke", resources=Resources(threads=1))
    assert said["rows"][0]["forward"] == 0, "its rows are not counted, as it takes no hooks"
