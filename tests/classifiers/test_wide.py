"""Wide residual networks: published sizes, names of published checkpoints, the arithmetic spelled out."""

import pytest
import torch
import torch.nn.functional as F

from components import check_weights_matter
from lustral.classifiers.wide import WideResNet
from lustral.core.errors import UserError


@pytest.fixture(scope="module")
def small():
    """WRN-16-1 in float64 with lively moving averages."""
    torch.manual_seed(0)
    model, x = WideResNet(16, 1).double(), torch.rand(5, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        model(x)
    return model.eval(), x


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 8), (2, 13)])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_images_of_any_size(channels, size, activation):
    model = WideResNet(10, 1, classes=7, channels=channels, activation=activation)
    assert model(torch.rand(2, channels, size, size)).shape == (2, 7)


def count(depth, widen):
    with torch.device("meta"):
        return sum(p.numel() for p in WideResNet(depth, widen).parameters())


def test_parameters_of_the_published_networks():
    """Zagoruyko and Komodakis, table 4, in millions; WRN-28-10 to the last; Gowal et al. (2020) for WRN-70-16."""
    assert count(28, 10) == 36_479_194
    published = {(40, 1): 0.6, (40, 4): 8.9, (16, 8): 11.0, (22, 8): 17.2, (70, 16): 266.8}
    assert {size: round(count(*size) / 1e6, 1) for size in published} == published


def test_names_are_those_of_published_checkpoints():
    """Written out for WRN-16 from the naming that TRADES introduced."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{n}" for n in norm)]
    for i in (1, 2, 3):
        for j in (0, 1):
            block = f"block{i}.layer.{j}"
            names += [f"{block}.conv1.weight", f"{block}.conv2.weight"]
            names += [f"{block}.{bn}.{n}" for bn in ("bn1", "bn2") for n in norm]
        names.append(f"block{i}.layer.0.convShortcut.weight")
    assert set(WideResNet(16, 2).state_dict()) == set(names)


def test_the_network_is_its_equations_on_its_names(small):
    """The forward pass again, from the state dict alone."""
    model, x = small
    s = model.state_dict()

    def norm_relu(h, name):
        mean, var, scale, shift = (
            s[f"{name}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.relu((h - mean) / torch.sqrt(var + 1e-5) * scale + shift)

    h = F.conv2d((x - 0.5) / 0.25, s["conv1.weight"], padding=1)
    for i in (1, 2, 3):
        for j in (0, 1):
            block, stride = f"block{i}.layer.{j}", 2 if i > 1 and j == 0 else 1
            active = norm_relu(h, f"{block}.bn1")
            inner = F.conv2d(active, s[f"{block}.conv1.weight"], padding=1, stride=stride)
            inner = F.conv2d(norm_relu(inner, f"{block}.bn2"), s[f"{block}.conv2.weight"], padding=1)
            short = f"{block}.convShortcut.weight"
            h = inner + (F.conv2d(active, s[short], stride=stride) if short in s else h)
    out = norm_relu(h, "bn1").mean(dim=(2, 3)) @ s["fc.weight"].T + s["fc.bias"]
    # Widen 1 keeps 16 channels in the first group, which then has no shortcut.
    assert "block1.layer.0.convShortcut.weight" not in s
    torch.testing.assert_close(model(x), out)


@pytest.mark.parametrize("depth", [4, 20, 27])
def test_a_depth_that_no_wide_resnet_has_is_refused(depth):
    with pytest.raises(UserError, match="depth is 6n \\+ 4"):
        WideResNet(depth)


def test_gradient_reaches_every_weight(small):
    check_weights_matter(*small)


def test_a_row_alone_equals_the_row_in_its_batch(small):
    model, x = small
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), model(x), rtol=0, atol=1e-10)
