import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lustral.core.errors import UserError
from lustral.shell import data, demo

GREY = np.random.default_rng(0).random((5, 4, 6))


def saved(path, **arrays) -> data.Data:
    np.savez(path / "d.npz", **({"y": np.arange(5)} | arrays))
    return data.load(str(path / "d.npz"))


def test_digits_are_scikit_learns_in_their_order():
    raw = load_digits()
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train.ids), len(test.ids)) == (1200, 597)
    assert torch.equal(torch.cat([train.ids, test.ids]), torch.arange(1797))
    x, y = torch.cat([train.x, test.x]), torch.cat([train.y, test.y])
    assert x.shape == (1797, 1, 8, 8)
    assert x.dtype == torch.float32
    assert np.array_equal((16 * x[:, 0]).numpy(), raw.images)
    assert np.array_equal(y.numpy(), raw.target)


def test_the_demos_threat_cannot_turn_a_digit_into_another():
    """What the report says of it: the nearest two images of different digits are 7/16 apart, more than 2 eps."""
    train, test = data.load("digits", "train"), data.load("digits", "test")
    x, y = torch.cat([train.x, test.x]).flatten(1), torch.cat([train.y, test.y])
    pairs = zip(test.x.flatten(1), test.y, strict=True)
    nearest = min(float((row - x[y != label]).abs().amax(dim=1).min()) for row, label in pairs)
    assert nearest == 7 / 16 > 2 * demo.EPS
    assert "7/16" in demo.WHY_FAIR


@pytest.mark.parametrize(
    ("array", "channels"),
    [
        (GREY, 1),
        (GREY[:, None], 1),
        (GREY[..., None], 1),
        (np.stack([GREY] * 3, axis=1), 3),
        (np.stack([GREY] * 3, axis=3), 3),
    ],
    ids=["nhw", "n1hw", "nhw1", "n3hw", "nhw3"],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.uint8])
def test_layouts_and_types_are_understood(tmp_path, array, channels, dtype):
    scale = 255 if dtype == np.uint8 else 1
    found = saved(tmp_path, x=(scale * array).astype(dtype))
    assert found.x.shape == (5, channels, 4, 6)
    assert found.x.dtype == torch.float32
    expected = (scale * GREY).astype(dtype).astype(np.float32) / scale
    for channel in found.x.unbind(dim=1):
        assert np.allclose(channel.numpy(), expected, atol=1e-7)


def test_ids_are_positions_unless_they_are_given(tmp_path):
    assert saved(tmp_path, x=GREY).ids.tolist() == [0, 1, 2, 3, 4]
    assert saved(tmp_path, x=GREY, ids=np.array([9, 4, 7, 1, 3])).ids.tolist() == [9, 4, 7, 1, 3]


def test_labels_keep_their_images(tmp_path):
    found = saved(tmp_path, x=GREY, y=np.array([3, 1, 4, 1, 5], dtype=np.uint8))[torch.tensor([4, 0])]
    assert found.y.tolist() == [5, 3]
    assert found.y.dtype == torch.long
    assert found.ids.tolist() == [4, 0]
    assert np.allclose(found.x[:, 0].numpy(), GREY[[4, 0]], atol=1e-7)


def test_rounding_errors_at_the_edge_of_the_range_are_cut_off(tmp_path):
    found = saved(tmp_path, x=np.where(GREY > 0.5, 1 + 5e-7, -5e-7))
    assert float(found.x.min()) == 0
    assert float(found.x.max()) == 1


def test_unknown_splits_are_refused():
    with pytest.raises(UserError, match="Did you mean 'train'"):
        data.load("digits", "trian")
