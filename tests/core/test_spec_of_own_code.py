"""What a user's own functions and objects are: their code, and all that it refers to."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from lustral.attacks.losses import margin
from lustral.core.spec import digest, spec
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
