"""Augmentation against slow definitions, image by image."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lustral.core.noise import Key
from lustral.training.augment import crop, cutout, flip, shift

N, SHAPE = 200, (3, 7, 6)
X = 0.05 + 0.4 * Key(1).rng(N).uniform(torch.empty(N, *SHAPE))  # below 0.5, the grey of cutout
RNG = Key(2).rng(N)

AUGMENTATIONS = {
    "flip": flip,
    "crop": lambda x, rng: crop(x, rng, 2),
    "cutout": lambda x, rng: cutout(x, rng, 3),
    "shift": lambda x, rng: shift(x, rng, 1.5),
}
every = pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())


@every
def test_images_do_not_depend_on_their_neighbours(augment):
    whole = augment(X, RNG)
    assert whole.shape == X.shape
    for i in (0, 3, 77, N - 1):
        assert torch.allclose(augment(X[i : i + 1], RNG[i : i + 1])[0], whole[i], atol=1e-6)
    assert float((whole - X).flatten(1).abs().amax(1).gt(1e-4).float().mean()) > 0.3


@every
def test_the_input_is_left_alone(augment):
    before = X.clone()
    augment(X, RNG)
    assert torch.equal(X, before)


@pytest.mark.parametrize("name", ["flip", "crop", "shift"])
def test_constants_are_unchanged(name):
    x = X[:, :, :1, :1].expand(N, *SHAPE)
    assert torch.allclose(AUGMENTATIONS[name](x, RNG), x, atol=1e-6)


def test_flip_mirrors_about_half():
    out = flip(X, RNG)
    mirrored = [torch.equal(o, torch.from_numpy(x.numpy()[:, :, ::-1].copy())) for o, x in zip(out, X, strict=True)]
    kept = [torch.equal(o, x) for o, x in zip(out, X, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 0.35 < sum(mirrored) / N < 0.65  # 4 standard deviations


@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_crop_is_a_window_of_the_reflected_image(pixels):
    """Every image is exactly one window of NumPy's reflected padding, and all windows come up, about equally often."""
    out, c, (h, w) = crop(X, RNG, pixels), SHAPE[0], SHAPE[1:]
    size, found = 2 * pixels + 1, []
    for o, x in zip(out, X, strict=True):
        padded = np.pad(x.numpy(), [(0, 0), (pixels, pixels), (pixels, pixels)], mode="reflect")
        windows = [
            (i, j) for i in range(size) for j in range(size) if (padded[:, i : i + h, j : j + w] == o.numpy()).all()
        ]
        assert o.shape == (c, h, w)
        assert len(windows) == 1
        found += windows
    for axis in range(2):
        counts = np.bincount([f[axis] for f in found], minlength=size)
        assert len(counts) == size
        expected = N / size
        assert ((counts - expected) ** 2 / expected).sum() < 2 * pixels + 6 * (4 * pixels) ** 0.5  # χ², 6 sd


def grey(x: Tensor) -> Tensor:
    return (x == 0.5).all(dim=1)


@pytest.mark.parametrize("pixels", [1, 2, 3, 4])
def test_cutout_greys_one_square(pixels):
    """A rectangle, of all channels, as large as the square where it lies inside; everything else is untouched."""
    out = cutout(X, RNG, pixels)
    changed = (out != X).any(dim=1)
    assert torch.equal(changed, grey(out))
    assert torch.equal(torch.where(changed[:, None], X, out), X)
    h, w = SHAPE[1:]
    inside = 0
    for square in changed:
        rows, columns = square.any(1).nonzero().flatten(), square.any(0).nonzero().flatten()
        assert int(square.sum()) == len(rows) * len(columns)  # a full rectangle
        assert len(rows) <= pixels
        assert len(columns) <= pixels
        assert (rows.diff() == 1).all()
        assert (columns.diff() == 1).all()
        if rows[0] > 0 and rows[-1] < h - 1 and columns[0] > 0 and columns[-1] < w - 1:
            inside += 1
            assert int(square.sum()) == pixels**2
        assert int(square.sum()) >= (pixels // 2) ** 2
    assert inside > 10
    assert int(changed.sum(0).min()) > 0  # it reaches every pixel


def test_a_shift_is_a_bilinear_interpolation():
    """Of a plane a·row + b·column, away from the border: the same plane, moved."""
    row, column = torch.arange(9.0).view(1, 1, 9, 1), torch.arange(9.0).view(1, 1, 1, 9)
    x = (0.02 * row + 0.07 * column).expand(40, 1, 9, 9)
    rng = Key(3).rng(40)
    move = (2 * rng.uniform(torch.empty(40, 2)) - 1) * 1.5
    expected = x + (0.07 * move[:, 0] + 0.02 * move[:, 1]).view(-1, 1, 1, 1)
    assert torch.allclose(shift(x, rng, 1.5)[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], atol=1e-5)
