"""Seeds, ids and counts are whole numbers; nothing is cut off in silence."""

import numpy as np
import pytest
import torch

import lustral
from components import images, jitter
from lustral.core.errors import UserError
from lustral.core.noise import Key

X = images(3)
JITTER = lustral.from_function(jitter)
BARE = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
DEFENCE = lustral.defend(BARE, JITTER)
Y = torch.tensor([0, 1, 2])
NULL = lustral.RandomSign(lustral.Linf(0.1), 1)
SEEDED = {
    "key": Key,
    "fold": lambda seed: Key(0).fold(seed).rng(2).normal(X[:2]),
    "draw": lambda seed: Key(0).rng(2, seed),
    "ids": lambda seed: Key(0).rng([seed, seed]),
    "number of ids": lambda seed: Key(0).rng(seed),
    "purify": lambda seed: lustral.purify(JITTER, X, seed),
    "trace": lambda seed: next(lustral.trace(JITTER, X, seed)),
    "decide": lambda seed: DEFENCE.decide(X, seed),
    "bind": lambda seed: DEFENCE.bind(seed),
    "logits": lambda seed: DEFENCE.logits(X, seed),
    "draws": lambda seed: DEFENCE.draws(X, seed),
    "attack": lambda seed: NULL.run(DEFENCE, X, Y, seed),
    "assess": lambda seed: lustral.assess(DEFENCE, lustral.Data(Y, X, Y), lustral.Linf(0.1), "smoke", seed=seed),
    "data": lambda part: lustral.assess(DEFENCE, lustral.Data(Y + part, X, Y), lustral.Linf(0.1), "smoke"),
    "vote": lustral.MeanLogits,
    "majority": lustral.Majority,
    "softmax": lustral.MeanSoftmax,
    "patience": lambda n: lustral.PGD(lustral.Linf(0.1), lustral.exact(), patience=n).run(DEFENCE, X, Y, 0),
    "targets": lambda n: lustral.Targeted(NULL, n),
    "steps": lambda n: lustral.from_function(jitter, steps=n),
}


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize("wrong", [0.7, 2.5, float("nan")])
def test_a_part_of_a_number_is_refused(name, wrong):
    with pytest.raises(UserError, match="whole number"):
        SEEDED[name](wrong)


@pytest.mark.parametrize("wrong", [True, "3", [3], (0, 1)])
def test_what_is_no_number_is_no_seed(wrong):
    for name in ("key", "purify", "decide", "bind", "attack"):
        with pytest.raises(UserError, match="A seed must be a whole number, not"):
            SEEDED[name](wrong)
    with pytest.raises(UserError, match="not -1"):
        Key(0).rng(-1)
    with pytest.raises(UserError, match=r"whole numbers \[n\]"):
        Key(0).rng(torch.tensor([True, False]))
    with pytest.raises(UserError, match=r"whole numbers \[n\], not torch.int64 of shape \(1, 1\)"):
        Key(0).rng([[0]])


def test_whole_numbers_of_any_library_are_the_same_seed_and_ids():
    like = X[:2]
    expected = Key(3).fold(2).rng([4, 5]).normal(like)
    for kind in (np.int64, np.uint8, torch.tensor):
        ids = torch.tensor([4, 5], dtype=torch.int32)
        assert torch.equal(Key(kind(3)).fold(kind(2)).rng(ids).normal(like), expected)
        assert torch.equal(Key(3).rng(kind(2)).ids, torch.arange(2))
    assert Key(np.int64(3)) == Key(3)
    assert len(Key(0).rng([])) == 0


def test_bound_to_nothing_it_has_noise_that_nobody_knows_and_that_stays():
    bound = DEFENCE.bind(None)
    assert torch.equal(bound(X), bound(X))
    assert not torch.equal(bound(X), DEFENCE.bind(None)(X))


def test_a_key_of_a_defence_is_a_key():
    with pytest.raises(UserError, match=r"lustral\.Key\(0\)"):
        lustral.defend(BARE, JITTER, key=0)
