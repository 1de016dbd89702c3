"""Folding a run takes as long for each of many systems as for each of a few."""

import pytest
import torch
from torch import nn

import lustral
from lustral.evaluate import metrics


def defences(count: int) -> dict[str, lustral.Defence]:
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval() for _ in range(count)]
    for seed, net in enumerate(nets):
        net[1].weight.data = lustral.Key(seed).rng(10).normal(torch.empty(10, 64))
    return {f"system {k}": lustral.defend(net) for k, net in enumerate(nets)}


@pytest.fixture(scope="module")
def calls() -> list[int]:
    """How many bootstraps folding 2, 4 and 6 systems takes."""
    found, bootstrap = [], metrics.bootstrap
    with pytest.MonkeyPatch.context() as patch:
        for name in ("metrics.bootstrap", "findings.base.bootstrap"):
            patch.setattr(f"lustral.evaluate.{name}", lambda *args: found.append(1) or bootstrap(*args))
        counts = []
        for count in (2, 4, 6):
            found.clear()
            given = defences(count), lustral.data("digits"), lustral.Linf(1 / 16), "smoke"
            assessed = lustral.assess(*given, images=2, allow_red=True)
            counts.append(len(found))
            pairs = [(test["a"], test["b"]) for test in assessed["paired"]]
            assert pairs == [("system 0", f"system {k}") for k in range(1, count)], "each against the baseline alone"
    return counts


def test_the_cost_of_a_fold_grows_as_the_number_of_systems(calls):
    assert calls[2] - calls[1] == calls[1] - calls[0]
