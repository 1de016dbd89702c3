"""What a user's own functions and objects are: their code, and all that it refers to."""

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from lustral.attacks.losses import margin
from lustral.core.spec import PRINTED_MODULES, digest, spec
from lustral.core.vote import Majority
from lustral.defence import defend

net = torch.nn.Linear(2, 2)
scale = 1.0


def classify(x):
    return net(x) * scale


def through(x):
    return classify(x)


class Blur:
    def __init__(self, width: int, weights=None):
        self.width, self.weights = width, weights

    def __call__(self, x):
        return x * self.width

    def method(self, x):
        return x + self.width


def test_a_function_is_its_code_and_the_globals_that_it_uses(monkeypatch):
    before = [digest(f) for f in (classify, through, partial(classify), lambda x: classify(x))]
    assert digest(classify) == before[0]
    monkeypatch.setattr(sys.modules[__name__], "net", torch.nn.Linear(2, 2))
    changed = [digest(f) for f in (classify, through, partial(classify), lambda x: classify(x))]
    assert not set(before) & set(changed)
    monkeypatch.setattr(sys.modules[__name__], "scale", 2.0)
    assert digest(classify) != changed[0]


def test_an_object_is_its_attributes_and_a_method_its_object():
    assert digest(Blur(1)) == digest(Blur(1)) != digest(Blur(2))
    assert digest(Blur(1).method) == digest(Blur(1).method) != digest(Blur(2).method)
    assert digest(Blur(1, np.zeros(2))) == digest(Blur(1, np.zeros(2))) != digest(Blur(1, np.ones(2)))
    assert digest(Blur(np.int64(1))) == digest(Blur(1))
    itself = Blur(1)
    itself.weights = [itself, np.array([None])]
    assert digest(itself) == digest(itself)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({1, 2}, {3}),
        (frozenset("ab"), frozenset("c")),
        (b"a", b"b"),
        (torch.float32, torch.bfloat16),
        (range(3), range(9)),
        (Path("a"), Path("b")),
    ],
    ids=["set", "frozenset", "bytes", "dtype", "range", "path"],
)
def test_a_function_is_the_values_that_it_closes_over(one, other):
    def over(value):
        return lambda x: (x, value)

    assert digest(over(one)) == digest(over(one)) != digest(over(other))


def test_the_width_of_a_computation_is_not_the_defence():
    assert digest(defend(net, lanes=16)) == digest(defend(net, lanes=32))
    assert digest(defend(net)) != digest(defend(net, vote=Majority(3)))


def test_what_is_lustrals_own_or_installed_goes_by_its_name():
    assert spec(margin) == {"type": "lustral.attacks.losses.margin"}
    assert spec(np.linalg.norm) == {"type": "numpy.linalg.norm"}
    assert spec(subprocess.run) == {"type": "subprocess.run"}


def test_the_digest_is_the_same_in_every_process(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from lustral.core.spec import digest\n"
        "def f(x):\n    return x if x in {'a', 'b', 'c', 'd'} else sorted(name for name in {'e', 'f', 'g'})\n"
        "print(digest(f))\n"
    )
    found = set()
    for seed in ("1", "2", "3"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        made = subprocess.run(
            [sys.executable, "mine.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        found.add(made.stdout)
    assert len(found) == 1
    assert len(found.pop().strip()) == 32


CONV = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False, "padding_mode": "reflect"}


class Held(torch.nn.Module):
    """A user's module, whose settings may be private."""

    def __init__(self, temperature: float):
        super().__init__()
        self._temperature = temperature


class Slotted:
    __slots__ = ("__hidden", "width")

    def __init__(self, width: int, hidden: int = 0):
        self.width, self.__hidden = width, hidden


def hooked(hook) -> torch.nn.Module:
    module = torch.nn.Identity()
    if hook is not None:
        module.register_forward_pre_hook(hook)
    return torch.nn.Sequential(module)


def attention(heads: int = 2, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.TransformerEncoderLayer(8, heads, 8, batch_first=True, **options)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Held(1.0), Held(-1.0)),
        (Slotted(1), Slotted(2)),
        (Slotted(1), Slotted(1, 2)),
        (hooked(None), hooked(lambda module, given: (given[0] + 1,))),
        (hooked(lambda module, given: (given[0] + 2,)), hooked(lambda module, given: (given[0] + 1,))),
        (attention(2), attention(4)),
        (attention(), attention(norm_first=True)),
        (attention(activation="relu"), attention(activation="gelu")),
        (torch.nn.AvgPool2d(2), torch.nn.AvgPool2d(2, divisor_override=3)),
        (torch.nn.AvgPool2d(2), torch.nn.AvgPool2d(2, ceil_mode=True)),
        (torch.nn.AvgPool2d(2), torch.nn.AvgPool2d(2, count_include_pad=False)),
        (torch.nn.Upsample(None, 2, "bilinear"), torch.nn.Upsample(None, 2, "bilinear", align_corners=True)),
    ],
)
def test_settings_that_a_module_does_not_print_are_part_of_it(one, other):
    assert digest(one) != digest(other)


def test_what_a_module_is_does_not_change_by_copying_or_calling():
    for module in (attention(), Held(1.0), hooked(None)):
        before = digest(module)
        assert digest(copy.deepcopy(module)) == before
        if not isinstance(module, Held):
            module.eval()(torch.zeros(1, 3, 8))
        assert digest(module) == before


def test_modules_that_count_as_printed_hold_nothing_that_they_do_not_print():
    """Every argument of theirs shows in the printed form, or in a tensor that goes with it."""
    different = {
        torch.nn.Conv2d: [((2, 2, 3), {name: value}) for name, value in CONV.items()],
        torch.nn.BatchNorm2d: [((2,), o) for o in ({"eps": 1.0}, {"momentum": 0.5}, {"affine": False})],
        torch.nn.GroupNorm: [((1, 4), {"eps": 1.0}), ((2, 4), {})],
        torch.nn.LayerNorm: [((4,), {"eps": 1.0}), ((4,), {"bias": False})],
        torch.nn.GELU: [((), {"approximate": "tanh"})],
        torch.nn.LeakyReLU: [((0.5,), {})],
        torch.nn.ELU: [((0.5,), {})],
        torch.nn.Softplus: [((2.0,), {}), ((1.0, 3.0), {})],
        torch.nn.MaxPool2d: [((2,), o) for o in ({"stride": 1}, {"padding": 1}, {"dilation": 2}, {"ceil_mode": True})],
        torch.nn.Flatten: [((2,), {}), ((1, 2), {})],
        torch.nn.Dropout: [((0.1,), {})],
        torch.nn.Embedding: [((2, 2), {"padding_idx": 1}), ((2, 2), {"max_norm": 1.0})],
    }
    plain = {torch.nn.GroupNorm: (1, 4), torch.nn.Conv2d: (2, 2, 3), torch.nn.BatchNorm2d: (2,)}
    plain |= {torch.nn.LayerNorm: (4,), torch.nn.MaxPool2d: (2,), torch.nn.Embedding: (2, 2)}
    for kind, changes in different.items():
        assert kind in PRINTED_MODULES
        made = [kind(*plain.get(kind, ()))] + [kind(*args, **options) for args, options in changes]
        seen = {(repr(m), tuple((n, tuple(t.shape)) for n, t in m.state_dict().items())) for m in made}
        assert len(seen) == len(changes) + 1


def test_what_a_module_has_seen_is_no_part_of_it():
    seen, module = [], torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2)))
    module.register_forward_hook(lambda _, given, out: seen.append(out))
    module[0].mask = torch.ones(2, 2)
    before = digest(module)
    module._last = module(torch.zeros(1, 2))
    assert len(seen) == 1
    assert digest(module) == before
