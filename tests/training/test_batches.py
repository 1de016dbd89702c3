"""Batches: 8-bit images, shares of extra images, parts of processes."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lustral.core.noise import Key
from lustral.training.batches import Images, Source, rows, spread_rows

KEY = Key(5)


def numbered(n: int, first: int = 0, dtype: torch.dtype = torch.float32) -> Images:
    """Images [n, 1, 2, 2] that hold their label, which is their number."""
    y = torch.arange(first, first + n)
    x = y.view(-1, 1, 1, 1).expand(n, 1, 2, 2)
    return Images(x.to(torch.uint8) if dtype == torch.uint8 else x.to(dtype) / 255, y)


def slices(total: int, parts: int) -> list[slice]:
    cuts = [total * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(cuts)]


def test_8_bit_images_equal_floats():
    x = (256 * KEY.rng(12).uniform(torch.empty(12, 3, 4, 4))).to(torch.uint8)
    y = torch.arange(12)
    eight, floats = Images(x, y), Images(x.float() / 255, y)
    for step in range(4):
        a, b = (Source(images).batch(KEY, 5, step, slice(1, 4)) for images in (eight, floats))
        assert a[0].dtype == torch.float32
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert float(eight.take(y)[0].max()) <= 1
    assert torch.equal(Source(eight).batch(KEY, 12, 0, slice(0, 12))[0].sort(0).values, floats.x.sort(0).values)


def test_labels_stay_with_their_images():
    for step in range(7):
        x, y = Source(numbered(30, 0, torch.uint8), numbered(50, 100), 0.5).batch(KEY, 8, step, slice(0, 8))
        assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), y)


@pytest.mark.parametrize(
    ("size", "share", "extra"), [(10, 0.3, 3), (10, 0.7, 7), (7, 0.5, 4), (3, 0.1, 0), (3, 0.9, 2)]
)
def test_every_batch_has_the_share_of_extra_images(size, share, extra):
    """Real ones first. However large the share, one image is real."""
    source = Source(numbered(20), numbered(13, 100), share)
    for step in range(12):
        x, y = source.batch(KEY, size, step, slice(0, size))
        assert x.shape == (size, 1, 2, 2)
        assert (y >= 100).tolist() == [False] * (size - extra) + [True] * extra


def test_without_extra_images_the_share_means_nothing():
    one, two = (Source(numbered(20), None, share).batch(KEY, 6, 3, slice(0, 6))[1] for share in (0.0, 0.5))
    assert torch.equal(one, two)


def test_every_image_comes_once_per_epoch_of_its_kind():
    """6 real of 20 and 4 extra of 13 a step: each kind has epochs of its own."""
    source = Source(numbered(20), numbered(13, 100), 0.4)
    labels = torch.cat([source.batch(KEY, 10, step, slice(0, 10))[1] for step in range(40)])
    for kind, n in ((labels[labels < 100], 20), (labels[labels >= 100] - 100, 13)):
        epochs = [kind[i : i + n] for i in range(0, len(kind) - n + 1, n)]
        assert len(epochs) >= 12
        assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("parts", [2, 3, 6, 11])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_parts_tile_the_batch(parts, share):
    source = Source(numbered(20), numbered(13, 100), share)

    def batch(mine: slice) -> tuple[Tensor, Tensor]:
        return source.batch(KEY, 11, 5, mine)

    x, y = batch(slice(0, 11))
    pieces = [batch(mine) for mine in slices(11, parts)]
    assert torch.equal(torch.cat([p[0] for p in pieces]), x)
    assert torch.equal(torch.cat([p[1] for p in pieces]), y)


def test_orders_depend_on_the_key_and_the_epoch_alone():
    """Also when several orders are asked for in turn, more than are kept."""
    first = [rows(Key(seed), 9, 9, epoch) for seed in range(4) for epoch in range(3)]
    again = [rows(Key(seed), 9, 9, epoch) for seed in range(4) for epoch in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(a.tolist()) for a in first}) == 12


def test_some_images_are_from_all_over_a_sorted_set():
    labels = torch.arange(10).repeat_interleave(100)
    assert labels[spread_rows(1000, 50)].bincount().tolist() == [5] * 10
    assert spread_rows(1000, 30).unique().tolist() == spread_rows(1000, 30).tolist()
    assert spread_rows(7, 30).tolist() == list(range(7))
