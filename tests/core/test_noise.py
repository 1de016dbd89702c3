import copy
import hashlib
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lustral.core.errors import UserError
from lustral.core.noise import Key, Mixed, Rng, Veiled, as_rng, audit, replaying, veiled

KINDS = {"normal": Rng.normal, "uniform": Rng.uniform, "sign": Rng.sign}
KEY = Key(2024, ("here",))


def batch(n: int, *shape: int) -> Tensor:
    return torch.empty(n, *(shape or (2, 3, 3)))


def one(key: Key, sample: int = 0, draw: int = 0) -> Tensor:
    return key.rng(torch.tensor([sample]), draw).normal(batch(1, 16))


def test_noise_is_numpys_philox_at_the_documented_address():
    words = np.frombuffer(hashlib.blake2b(b"i4:2024s4:heres6:normal", digest_size=16).digest(), dtype="<u8")
    key = int(words[0]) | int(words[1]) << 64
    counter = 5 << 64 | 2**33 << 128  # words: 0, draw, sample id, 0
    expected = np.random.Generator(np.random.Philox(key=key, counter=counter)).standard_normal(16, dtype=np.float32)
    assert torch.equal(one(KEY, sample=2**33, draw=5)[0], torch.from_numpy(expected))


@pytest.mark.parametrize("draw_noise", KINDS.values(), ids=KINDS.keys())
def test_a_row_has_the_same_bits_in_any_batch_order_or_shard(draw_noise):
    ids = torch.tensor([3, 1, 2**40, 7, 0])
    rng = KEY.rng(ids)
    whole = draw_noise(rng, batch(5))
    order = torch.tensor([4, 2, 0, 3, 1])
    assert torch.equal(draw_noise(KEY.rng(ids[order]), batch(5)), whole[order])
    assert torch.equal(draw_noise(rng[order], batch(5)), whole[order])
    assert torch.equal(draw_noise(rng[1:4], batch(3)), whole[1:4])
    assert torch.equal(draw_noise(rng[ids > 2], batch(3)), whole[ids > 2])
    padded = torch.cat([ids, torch.tensor([99, 100])])
    assert torch.equal(draw_noise(KEY.rng(padded), batch(7))[:5], whole)
    shards = [draw_noise(rng[start::2], batch(len(ids[start::2]))) for start in (0, 1)]
    assert torch.equal(shards[0], whole[0::2])
    assert torch.equal(shards[1], whole[1::2])


def test_a_shorter_row_is_the_beginning_of_a_longer_one():
    rng = KEY.rng(4)
    assert torch.equal(rng.normal(batch(4, 50))[:, :20], rng.normal(batch(4, 20)))


def test_repeat_gives_every_row_its_own_draws():
    ids = torch.tensor([5, 9])
    repeated = KEY.rng(ids).repeat(3).normal(batch(6))
    for row, (sample, draw) in enumerate((s, d) for s in ids.tolist() for d in range(3)):
        assert torch.equal(repeated[row], KEY.rng(torch.tensor([sample]), draw).normal(batch(1))[0])
    assert torch.equal(KEY.rng(ids).repeat(1).normal(batch(2)), KEY.rng(ids).normal(batch(2)))


def test_repeating_twice_is_repeating_by_the_product():
    rng = KEY.rng(torch.tensor([5, 9]))
    assert torch.equal(rng.repeat(2).repeat(3).normal(batch(12)), rng.repeat(6).normal(batch(12)))


@pytest.mark.parametrize("bit", [0, 31, 32, 40, 63, 64, 100, 127])
def test_every_bit_of_a_seed_counts(bit):
    assert not torch.equal(one(Key(0)), one(Key(1 << bit)))


@pytest.mark.parametrize("bit", [0, 31, 32, 33, 47, 62])
def test_every_bit_of_a_sample_id_and_of_a_draw_counts(bit):
    assert not torch.equal(one(KEY), one(KEY, sample=1 << bit))
    assert not torch.equal(one(KEY), one(KEY, draw=1 << bit))
    assert not torch.equal(one(KEY, sample=1 << bit), one(KEY, draw=1 << bit))


def test_negative_sample_ids_have_noise_of_their_own():
    values = torch.cat([one(KEY, sample=s) for s in (-2, -1, 0, 1)])
    assert len(values.unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("ab", "c"), ("a", "bc")),
        ((1,), ("1",)),
        ((12,), (1, 2)),
        (("a",), ("a", "")),
        (("i1:1",), (1,)),
        ((), ("normal",)),
        (("a", "b"), ("b", "a")),
        (("é",), ("e",)),
        ((-1,), (1,)),
    ],
)
def test_different_paths_are_different_places(left, right):
    assert not torch.equal(one(Key(0, left)), one(Key(0, right)))


def test_a_seed_is_not_a_name_in_the_path():
    assert not torch.equal(one(Key(1, (2,))), one(Key(2, (1,))))
    assert not torch.equal(one(Key(1, (2,))), one(Key(12)))


def test_folding_goes_below_in_any_number_of_calls():
    assert Key(1).fold("a", 2).fold("b") == Key(1, ("a", 2, "b"))
    rng = Key(1).rng(3).fold("a").fold(2, "b")
    assert torch.equal(rng.normal(batch(3)), Key(1, ("a", 2, "b")).rng(3).normal(batch(3)))


def test_kinds_of_noise_are_independent():
    n = 40_000
    rng = KEY.rng(1)
    drawn = {"normal": rng.normal(batch(1, n)), "uniform": rng.uniform(batch(1, n)), "sign": rng.sign(batch(1, n))}
    unit = {k: ((v - v.mean()) / v.std()).flatten() for k, v in drawn.items()}
    for left, right in (("normal", "uniform"), ("normal", "sign"), ("uniform", "sign")):
        assert abs(float((unit[left] * unit[right]).mean())) < 4 / math.sqrt(n)


@pytest.mark.parametrize(("rows", "columns"), [(1, 100_000), (20_000, 1), (400, 250)])
def test_noise_has_its_distribution_within_and_across_samples(rows, columns):
    rng = KEY.fold("distribution").rng(rows)
    assert stats.kstest(rng.normal(batch(rows, columns)).flatten().double(), "norm").pvalue > 1e-3
    assert stats.kstest(rng.uniform(batch(rows, columns)).flatten().double(), "uniform").pvalue > 1e-3
    signs = rng.sign(batch(rows, columns))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / math.sqrt(rows * columns)


def test_uniform_noise_is_never_one():
    values = KEY.rng(1).uniform(batch(1, 1_000_000))
    assert 0 <= float(values.min()) < 1e-4
    assert 1 - 1e-4 < float(values.max()) < 1


def test_neighbouring_addresses_are_uncorrelated():
    n = 30_000
    here = KEY.rng(n).normal(batch(n, 1))
    bound = 4 / math.sqrt(n)
    neighbours = {
        "id": KEY.rng(torch.arange(n) + 1),
        "draw": KEY.rng(torch.arange(n), draw=1),
        "step": Key(KEY.seed, (*KEY.path, 1)).rng(n),
        "seed": Key(KEY.seed + 1, KEY.path).rng(n),
    }
    for name, rng in neighbours.items():
        assert abs(float((here * rng.normal(batch(n, 1))).mean())) < bound, name
    steps = [KEY.fold("step", i).rng(1).normal(batch(1, 100)) for i in range(301)]
    products = torch.cat(steps[:-1]) * torch.cat(steps[1:])
    assert abs(float(products.mean())) < bound


@pytest.mark.parametrize("draw_noise", KINDS.values(), ids=KINDS.keys())
def test_another_dtype_gets_the_float32_values_cast(draw_noise):
    rng = KEY.rng(3)
    single = draw_noise(rng, batch(3))
    for dtype in (torch.float64, torch.bfloat16):
        cast = draw_noise(rng, batch(3).to(dtype))
        assert cast.dtype == dtype
        assert torch.equal(cast, single.to(dtype))


def test_a_row_may_be_a_scalar_and_a_batch_may_be_empty():
    assert torch.equal(KEY.rng(3).normal(torch.empty(3)), KEY.rng(3).normal(torch.empty(3, 1))[:, 0])
    assert KEY.rng(0).normal(batch(0)).shape == (0, 2, 3, 3)


@pytest.mark.parametrize("rows", [2, 4])
def test_a_wrong_number_of_rows_is_an_error(rows):
    with pytest.raises(UserError, match=f"3 rows but the batch has {rows}"):
        KEY.rng(3).normal(batch(rows))


def test_threads_that_draw_at_once_do_not_disturb_each_other():
    keys = [KEY.fold("thread", i) for i in range(40)]

    def draw(key: Key) -> Tensor:
        return key.rng(20).normal(batch(20, 5000))

    alone = [draw(key) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, keys))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_drawing_leaves_torchs_own_generator_alone():
    before = torch.get_rng_state()
    for draw_noise in KINDS.values():
        draw_noise(KEY.rng(2), batch(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_secret_keys_differ():
    assert Key.secret() != Key.secret()


def test_what_people_may_pass_for_randomness():
    rng = Key(5).rng(3)
    assert as_rng(rng, 3) is rng
    for given in (5, Key(5)):
        assert torch.equal(as_rng(given, 3).normal(batch(3)), rng.normal(batch(3)))
    assert not torch.equal(as_rng(None, 3).normal(batch(3)), as_rng(None, 3).normal(batch(3)))


def test_audit_counts_every_address_and_catches_one_used_twice():
    rng = KEY.rng(3)
    with audit() as seen:
        rng.normal(batch(3))
        rng.uniform(batch(3))
        rng.fold("below").normal(batch(3))
    assert len(seen) == 9
    assert set(seen.values()) == {1}
    with audit() as seen:
        rng.normal(batch(3))
        rng[1:2].normal(batch(1))
    assert sorted(seen.values()) == [1, 1, 2]


def test_audit_exempts_a_declared_recomputation_and_ends_with_its_block():
    rng = KEY.rng(2)
    with audit() as seen:
        rng.normal(batch(2))
        with replaying():
            rng.normal(batch(2))
        rng.fold("next").normal(batch(2))
    rng.normal(batch(2))
    assert len(seen) == 4
    assert set(seen.values()) == {1}


def purifier_noise(rng: Rng | Mixed, rows: int) -> dict[str, Tensor]:
    """What a purifier behind a defence's folding meets in its init and in a step."""
    rng = rng.fold("purify")
    places = {"init": rng.fold("init"), "step": rng.fold("step", 2)}
    return {name: place.normal(batch(rows)) for name, place in places.items()}


@pytest.mark.parametrize("part", ["init", "step"])
def test_mixed_noise_is_the_known_source_in_its_part_and_the_fresh_one_elsewhere(part):
    fresh, known = Key(1).rng(torch.tensor([4, 9])), Key(2).rng(torch.tensor([4, 9]))
    seen = purifier_noise(Mixed(fresh, known, part), 2)
    for place, noise in seen.items():
        assert torch.equal(noise, purifier_noise(known if place == part else fresh, 2)[place])
        assert not torch.equal(noise, purifier_noise(fresh if place == part else known, 2)[place])


@pytest.mark.parametrize(
    "change",
    [lambda r: r[torch.tensor([2, 0])], lambda r: r[1:], lambda r: r.repeat(3), lambda r: r.fold("else", 1)],
    ids=["integers", "slice", "repeat", "fold"],
)
def test_mixed_noise_is_indexed_repeated_and_folded_as_both_of_its_sources(change):
    fresh, known = Key(1).rng(torch.tensor([4, 9, 5])), Key(2).rng(torch.tensor([4, 9, 5]), draw=3)
    mixed, rows = change(Mixed(fresh, known, "init")), len(change(fresh))
    assert len(mixed) == rows
    assert torch.equal(mixed.ids, change(fresh).ids)
    assert torch.equal(purifier_noise(mixed, rows)["init"], purifier_noise(change(known), rows)["init"])
    assert torch.equal(purifier_noise(mixed, rows)["step"], purifier_noise(change(fresh), rows)["step"])


def test_mixed_noise_may_be_passed_for_randomness():
    mixed = Mixed(Key(1).rng(2), Key(2).rng(2), "init")
    assert as_rng(mixed, 2) is mixed


@pytest.mark.parametrize("draw_noise", [Veiled.normal, Veiled.uniform, Veiled.sign])
def test_veiled_noise_has_the_bits_of_its_address_and_is_asked_alike(draw_noise):
    plain, opaque = KEY.rng(torch.tensor([4, 9, 2])), veiled(KEY.rng(torch.tensor([4, 9, 2])))
    twin = getattr(Rng, draw_noise.__name__)
    changes = [
        lambda rng: rng,
        lambda rng: rng.fold("deeper", 3),
        lambda rng: rng[1:],
        lambda rng: rng[torch.tensor([True, False, True])],
        lambda rng: rng.repeat(2).fold("x"),
        lambda rng: rng.at(Key(7)),
    ]
    for change in changes:
        expected, found = change(plain), change(opaque)
        assert torch.equal(draw_noise(found, batch(len(found))), twin(expected, batch(len(expected))))
    with audit() as seen:
        opaque.normal(batch(3))
    assert sorted(i for _, i, _ in seen) == [2, 4, 9]


@pytest.mark.parametrize("mixed", [False, True])
def test_veiled_noise_does_not_say_where_it_is(mixed):
    rng = KEY.fold("judge").rng(torch.tensor([31, 77]), draw=5)
    opaque = veiled(Mixed(rng, Key(1).rng(rng.ids), "init") if mixed else rng)
    open_to_all = {name for name in dir(opaque) if not name.startswith("_")}
    assert open_to_all == {"fold", "repeat", "at", "normal", "uniform", "sign"}
    assert type(opaque.fold("init")) is type(opaque.fold("step", 0)) is type(veiled(opaque)) is Veiled
    assert not hasattr(opaque, "__dict__")
    assert not any(word in repr(opaque) for word in ("judge", "here"))
    assert copy.deepcopy(opaque) is opaque
    assert as_rng(opaque, 2) is opaque
    with pytest.raises(TypeError, match="keep the Key"):
        pickle.dumps(opaque)
