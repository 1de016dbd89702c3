import numpy as np
import pytest
import torch

from lustral.core import check
from lustral.core.errors import UserError, unknown
from lustral.core.kernel import purify, trace
from lustral.purifiers.compose import from_function


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_images_pass_unchanged(dtype):
    x = torch.tensor([0.0, 0.5, 1.0], dtype=dtype).view(1, 1, 1, 3)
    assert check.images(x) is x
    nothing = torch.empty(0, 3, 4, 4, dtype=dtype)
    assert check.images(nothing) is nothing


def test_rounding_at_the_edge_is_forgiven():
    x = torch.tensor([-5e-7, 1 + 5e-7]).view(1, 1, 1, 2)
    assert check.images(x) is x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3, 4, 4)), "must be a torch tensor .* not ndarray"),
        (torch.zeros(3, 4, 4), r"not shape \(3, 4, 4\); add a batch axis with x\[None\]"),
        (torch.zeros(4, 4), r"must have 4 axes .* not shape \(4, 4\)\."),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "not uint8; divide 8-bit images by 255"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), r"not int64\."),
        (torch.full((1, 3, 4, 4), torch.nan), "NaN or infinite"),
        (torch.full((1, 3, 4, 4), -torch.inf), "NaN or infinite"),
        (torch.full((1, 3, 4, 4), 255.0), r"span \[255, 255\]; divide by 255"),
        (torch.linspace(-1, 1, 4).view(1, 1, 2, 2), r"span \[-1, 1\]; map \[-1, 1\] by \(x \+ 1\) / 2"),
        (torch.linspace(-9, 2, 4).view(1, 1, 2, 2), "span .* rescale them"),
        (torch.linspace(0, 3, 4).view(1, 1, 2, 2), "divide by what is white in them"),
        (torch.linspace(0, 16, 4).view(1, 1, 2, 2), "divide by what is white in them .*16 in digits"),
        (torch.linspace(0, 1000, 4).view(1, 1, 2, 2), "divide by 1023"),
        (torch.linspace(0, 65535, 4).view(1, 1, 2, 2), "divide by 65535"),
        (torch.linspace(-0.2, 256, 4).view(1, 1, 2, 2), "divide by 255"),
        (torch.zeros(2, 8, 8, 3), r"\[batch, height, width, channels\] as shape .* x\.permute\(0, 3, 1, 2\)"),
        (torch.zeros(2, 8, 8, 1), r"x\.permute\(0, 3, 1, 2\)"),
        (torch.zeros(8, 8, 3), r"turn one colour image by x\.permute\(2, 0, 1\)\[None\]"),
        (torch.zeros(5, 8, 8), r"add a channel axis with x\[:, None\]"),
    ],
)
def test_what_is_no_batch_of_images_is_told_the_remedy(x, message):
    with pytest.raises(UserError, match=message):
        check.images(x)


NORMALISED = {
    "ImageNet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "CIFAR-10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "CIFAR-10, old": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "MNIST": ([0.1307], [0.3081]),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_standardised_images_are_told_to_undo_that_and_no_step_on_the_way_passes_for_grey(name):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in NORMALISED[name])
    x = (torch.linspace(0, 1, 2 * 16).view(2, 1, 4, 4) - mean) / std
    with pytest.raises(UserError, match=r"look standardised.*x \* std \+ mean.*let the classifier do it"):
        check.images(x)
    for step, said in ((x / 255, "nearly black.*undo"), ((x / 255 + 1) / 2, "one flat grey.*undo")):
        with pytest.raises(UserError, match=said):
            check.images(step)
    with pytest.raises(UserError, match="must lie in"):
        check.images((x + 1) / 2)
    check.images(x * std + mean)


def test_grey_on_purpose_and_little_contrast_elsewhere_are_images():
    for x in (torch.full((2, 1, 4, 4), 0.5), torch.linspace(0.49, 0.52, 16).view(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)):
        assert check.images(x) is x
    assert check.images(torch.linspace(0.1, 0.101, 16).view(1, 1, 4, 4)).min() > 0


def test_the_message_names_what_was_checked():
    with pytest.raises(UserError, match="^starting points must have 4 axes"):
        check.images(torch.zeros(3), "starting points")


def test_an_unknown_name_suggests_the_closest():
    known = ["sde", "ddpm"]
    assert str(unknown("solver", "dpm", known)) == "Unknown solver 'dpm'. Did you mean 'ddpm'? Known: ddpm, sde."
    assert str(unknown("solver", "quantum", known)) == "Unknown solver 'quantum'. Known: ddpm, sde."


@pytest.mark.parametrize(
    "wrong", [255 * torch.rand(2, 1, 4, 4) + 2, torch.full((2, 1, 4, 4), torch.nan), torch.rand(1, 4, 4)]
)
def test_purifying_by_hand_takes_images_alone(wrong):
    blur = from_function(torch.zeros_like)
    with pytest.raises(UserError, match="images"):
        purify(blur, wrong, 0)
    with pytest.raises(UserError, match="images"):
        next(trace(blur, wrong, 0))
