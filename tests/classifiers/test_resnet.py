"""ResNet-9: shapes, size, the arithmetic of its parts, normalisation."""

import pytest
import torch
from torch import nn

from components import check_weights_matter, settled
from lustral.classifiers.resnet import Normalise, Residual, ResNet
from lustral.core.errors import UserError


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    x = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    return settled(ResNet(width=4).double(), x), x


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 8), (2, 13)])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "celu"])
def test_images_of_any_size(channels, size, activation):
    model = ResNet(channels, width=4, classes=7, activation=activation)
    assert model(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_parameters_of_the_published_network():
    """Counted by hand: convolutions 6 563 520, the classifier 5 120, scales and shifts 4 480."""
    with torch.device("meta"):
        model = ResNet()
    assert sum(p.numel() for p in model.parameters()) == 6_563_520 + 5_120 + 4_480


def test_the_network_layer_by_layer(small):
    model, x = small
    parts = list(model.body)

    def step(layers, h, pool):
        conv, norm = layers[0], layers[-2]
        h = nn.functional.conv2d(h, conv.weight, padding=1)
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5)) if pool else h
        shape = (1, -1, 1, 1)
        h = (h - norm.running_mean.view(shape)) / torch.sqrt(norm.running_var.view(shape) + norm.eps)
        return torch.relu(h * norm.weight.view(shape) + norm.bias.view(shape))

    h = step(parts[0], (x - 0.5) / 0.25, pool=False)
    h = step(parts[1], h, pool=True)
    h = h + step(parts[2].body[1], step(parts[2].body[0], h, pool=False), pool=False)
    h = step(parts[4], step(parts[3], h, pool=True), pool=True)
    h = h + step(parts[5].body[1], step(parts[5].body[0], h, pool=False), pool=False)
    torch.testing.assert_close(model(x), h.amax(dim=(2, 3)) @ model.last.weight.T / 8)
    assert sum(isinstance(part, Residual) for part in parts) == 2


def test_normalisation_is_folded_in_and_is_no_weight(small):
    model, x = small
    mean, std = (0.49, 0.48, 0.45), (0.2, 0.21, 0.26)
    other = ResNet(width=4, mean=mean, std=std).double().eval()
    other.load_state_dict(model.state_dict())
    shape = (1, 3, 1, 1)
    moved = (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape) * 0.25 + 0.5
    torch.testing.assert_close(other(x), model(moved), rtol=1e-6, atol=1e-7)
    assert not any(name.startswith("normalise") for name in model.state_dict())


@pytest.mark.parametrize("wrong", [{"mean": (0.5,)}, {"std": (1.0, 1.0)}, {"std": (1.0, 0.0, 1.0)}])
def test_normalisation_must_fit_the_channels(wrong):
    with pytest.raises(UserError, match="must be 3 numbers"):
        Normalise(3, **wrong)


def test_an_unknown_activation_is_refused():
    with pytest.raises(UserError, match="Did you mean 'silu'"):
        ResNet(activation="silo")


def test_gradient_reaches_every_weight(small):
    check_weights_matter(*small)


def test_a_row_alone_equals_the_row_in_its_batch(small):
    model, x = small
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), model(x), rtol=0, atol=1e-10)


def test_channels_last_changes_nothing_but_the_layout(small):
    model, x = small
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), model(x), rtol=0, atol=1e-10)
