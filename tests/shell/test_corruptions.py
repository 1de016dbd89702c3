"""CIFAR-10-C's corruptions: each against its definition, and what is the same for all."""

import colorsys
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.evaluate.protocol import Data
from lustral.shell.images import corruptions
from lustral.shell.images.corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope="module")
def data():
    """Smooth colour images, so that blurs and noise are far apart."""
    rng = Key(5).rng(6)
    coarse = rng.uniform(torch.empty(6, 3, 8, 8))
    x = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    return Data(torch.arange(6) + 100, (255 * x).to(torch.uint8), torch.arange(6))


def floats(data):
    return data._replace(x=data.x / 255)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_subset_and_worse_than_not_at_all(name, data):
    for severity in (1, 5):
        whole = corrupt(data, f"{name}-{severity}")
        assert whole.x.dtype == torch.uint8
        assert whole.x.shape == data.x.shape
        assert torch.equal(corrupt(data[torch.tensor([4, 1])], f"{name}-{severity}").x, whole.x[[4, 1]])
        assert not torch.equal(whole.x, data.x)
    assert torch.equal(whole.ids, data.ids)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"elastic_transform", "glass_blur", "frost", "pixelate"}))
def test_severities_are_in_order(name, data):
    """All but the generator's exceptions: elastic_transform is strongest at 1, glass_blur and frost go up and down, and
    what is left of an image by pixelate depends on how its grid falls."""
    x = floats(data)
    errors = [float((corrupt(x, f"{name}-{severity}").x - x.x).square().mean()) for severity in range(1, 6)]
    assert all(a <= b * 1.02 for a, b in itertools.pairwise(errors)), errors
    assert errors[0] < errors[-1]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grey_and_small_images_are_corrupted_too(name):
    x = Key(0).rng(3).uniform(torch.empty(3, 1, 8, 8))
    out = corrupt(Data(torch.arange(3), x, torch.arange(3)), f"{name}-5").x
    assert out.shape == x.shape
    assert 0 <= out.min() <= out.max() <= 1


def test_noise_has_its_size(data):
    grey = floats(data)._replace(x=torch.full((6, 3, 32, 32), 0.5))
    assert corrupt(grey, "gaussian_noise-3").x.std() == pytest.approx(0.08, rel=0.03)
    shots = corrupt(grey, "shot_noise-5").x
    assert shots.mean() == pytest.approx(0.5, abs=0.005)
    assert shots.std() == pytest.approx((0.5 / 50) ** 0.5, rel=0.03)
    salted = corrupt(grey, "impulse_noise-5").x
    assert (salted != 0.5).float().mean() == pytest.approx(0.07, abs=0.01)
    assert (salted == 1).float().mean() == pytest.approx(0.035, abs=0.007)


def test_contrast_and_brightness_are_as_defined(data):
    x = floats(data)
    mean = x.x.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(corrupt(x, "contrast-5").x, mean + 0.15 * (x.x - mean))
    pixel = x.x[0, :, 3, 4].tolist()
    h, s, v = colorsys.rgb_to_hsv(*pixel)
    expected = torch.tensor(colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1)))
    torch.testing.assert_close(corrupt(x, "brightness-4").x[0, :, 3, 4], expected)
    dark = x._replace(x=torch.zeros_like(x.x))
    assert torch.equal(corrupt(dark, "brightness-1").x, torch.full_like(x.x, 0.05))


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"])
def test_what_moves_pixels_leaves_an_even_image_alone(name, data):
    even = floats(data)._replace(x=torch.full((6, 3, 32, 32), 102 / 255))
    torch.testing.assert_close(corrupt(even, f"{name}-5").x, even.x)


def test_motion_blur_smears_a_point_along_its_direction():
    """Half a Gaussian over 2·6 + 1 pixels; at 0 degrees a pixel takes what lies to its right."""
    x = torch.zeros(1, 1, 5, 32)
    x[0, 0, 2, 20] = 1
    out = corruptions._smear(x, 6, 2.0, torch.zeros(1))
    weights = np.exp(-(np.arange(13.0) ** 2) / 8)
    expected = torch.zeros(32)
    expected[8:21] = torch.tensor((weights / weights.sum())[::-1].copy())
    torch.testing.assert_close(out[0, 0, 2], expected)
    assert out.sum() == pytest.approx(1)
    assert out[0, 0, [0, 1, 3, 4]].abs().max() == 0


def test_glass_moves_pixels_by_at_most_one_without_inventing_any(monkeypatch):
    monkeypatch.setattr(corruptions, "_blur", lambda x, sigma: x)
    x = (torch.arange(64).float() / 255).view(1, 1, 8, 8)
    out = corruptions.glass_blur(x, 0, Key(0).rng(1))
    moved = 0
    for i in range(8):
        for j in range(8):
            near = x[0, 0, max(0, i - 1) : i + 1, max(0, j - 1) : j + 1] if i > 1 and j > 1 else x[0, 0, i, j]
            assert (near - out[0, 0, i, j]).abs().min() < 1e-6
            moved += int(out[0, 0, i, j] != x[0, 0, i, j])
    assert moved > 10


def test_pictures_are_compressed_and_shrunk_as_pillow_does(data):
    image = Image.fromarray(data.x[0].permute(1, 2, 0).numpy())
    content = io.BytesIO()
    image.save(content, "JPEG", quality=50)
    assert torch.equal(
        corrupt(data, "jpeg_compression-4").x[0].permute(1, 2, 0), torch.tensor(np.array(Image.open(content)))
    )
    small = image.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    assert torch.equal(corrupt(data, "pixelate-5").x[0].permute(1, 2, 0), torch.tensor(np.array(small)))


def test_plasma_is_a_texture_between_0_and_1_and_of_another_kind_for_every_image():
    heights = corruptions._plasma(torch.empty(3, 3, 20, 32), 2.0, Key(0).rng(3))
    assert heights.shape == (3, 1, 20, 32)
    assert heights.min() >= 0
    assert heights.max() <= 1
    assert not torch.equal(heights[0], heights[1])
    steps = (heights[..., 1:] - heights[..., :-1]).std()
    assert steps < heights.std(dim=(2, 3)).mean() / 3  # neighbours are alike


@pytest.mark.parametrize("what", ["fog", "fog-6", "fog-0", "-3", "mist-3", ""])
def test_other_names_are_refused(what, data):
    with pytest.raises(UserError, match="corruption"):
        corrupt(data, what)


def test_an_evaluation_names_the_corruption(lustral, capfd):
    options = ["--purification.method=none", "--stages=[clean]", "--images=4", "--draws=1"]
    assert lustral("evaluate", "run", *options, "--corruption=contrast-5") == 0
    assert "digits under contrast-5" in Path("run/results.json").read_text(encoding="utf-8")
    assert lustral("evaluate", "run", *options) == 2
    assert "another run" in capfd.readouterr().err
