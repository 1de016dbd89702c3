"""Foreign attack libraries run against a defence as against any other torch module."""

import pytest
import torch

from digits import EPS, defence, digits
from lustral.core.noise import Key
from lustral.defence import Defence

KEY = Key(9)
N = 8


def face(kind: str) -> torch.nn.Module:
    """A defence with its noise fixed, or the plain module, whose noise is new at every call."""
    return defence().bind(KEY).eval() if kind == "bound" else defence(key=KEY).eval()


def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Of one call on fixed noise, or of 20 calls on fresh noise."""
    calls = 20 if isinstance(model, Defence) else 1
    with torch.no_grad():
        return sum(float((model(x).argmax(dim=1) == y).float().mean()) for _ in range(calls)) / calls


def check(model: torch.nn.Module, x: torch.Tensor) -> None:
    """The attack kept to its threat and took at least an eighth of the accuracy."""
    _, x0, y = digits(N)
    assert float((x - x0).abs().max()) <= EPS + 1e-6
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    before = accuracy(model, x0, y)
    assert before > 0.8
    assert accuracy(model, x, y) < before - 1 / 8


faces = pytest.mark.parametrize("kind", ["bound", "plain"])


@faces
def test_torchattacks_pgd(kind):
    torchattacks = pytest.importorskip("torchattacks")
    torch.manual_seed(0)
    model = face(kind)
    attack = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=8)
    check(model, attack(digits(N).x, digits(N).y))


@faces
def test_foolbox_linf_pgd(kind):
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    model = face(kind)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(rel_stepsize=1 / 4, steps=8)
    _, x, _ = attack(wrapped, digits(N).x, foolbox.criteria.Misclassification(digits(N).y), epsilons=EPS)
    check(model, x)


@faces
def test_autoattack_apgd(kind):
    pyautoattack = pytest.importorskip("pyautoattack")
    model = face(kind)
    attack = pyautoattack.AutoAttack(model, version="custom", attacks=["apgd-ce"], eps=EPS, norm="Linf", seed=0)
    attack.apgd.n_iter, attack.apgd.n_restarts, attack.apgd.eot_iter = 10, 1, 1 if kind == "bound" else 2
    x, _ = attack.run_standard_evaluation(digits(N).x, digits(N).y, batch_size=N)
    check(model, x)


def test_an_attack_library_meets_the_noise_of_a_bound_defence():
    """The logits that a library sees are those of the defence under that key, image by image."""
    model, x = face("bound"), digits(N).x
    assert torch.equal(model(x), defence().logits(x, KEY.rng(N)))
    assert torch.equal(model(x), model(x))
    plain = face("plain")
    assert not torch.equal(plain(x), plain(x))
