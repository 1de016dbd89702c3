"""The whitened residual network: its first layer's statistics, its arithmetic, sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from components import check_weights_matter, settled
from lustral.classifiers.whitened import WhitenedResNet, Whitening


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    x = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    model = WhitenedResNet(width=4, activation="relu").double()
    model.fit(x)
    return settled(model, x), x


def test_fitted_filters_whiten_the_patches_of_correlated_images():
    """Outputs have mean 0 and covariance V/(V + eps) of their directions' variances V: 1 but for nearly flat ones."""
    torch.manual_seed(0)
    x = (0.5 + 0.2 * F.avg_pool2d(torch.randn(40, 3, 18, 18, dtype=torch.float64), 3, 1)).clamp(0, 1)
    layer = Whitening(3).double()
    layer.fit(x)
    seen = layer(x).transpose(0, 1).flatten(1)
    variances = torch.linalg.eigvalsh(F.unfold(x, 2).transpose(1, 2).flatten(0, 1).T.cov())
    wanted = torch.diag(variances / (variances + layer.EPS))
    torch.testing.assert_close(seen[:12].cov(), wanted, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(seen[12:], -seen[:12], atol=1e-12, rtol=0)
    torch.testing.assert_close(seen.mean(1), torch.zeros(24, dtype=torch.float64), atol=1e-9, rtol=0)


def test_only_the_bias_of_the_first_layer_is_trained():
    layer = Whitening(3)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert set(layer.state_dict()) == {"bias", "filters"}


def test_parameters_of_jordans_network_and_of_normalisations_scales():
    """Counted by hand: bias 24; convolutions 9·(24·64 + 64² + 64·256 + 3·256²); scales and shifts 4·576; 2560 last."""
    with torch.device("meta"):
        model = WhitenedResNet()
    count = 24 + 9 * (24 * 64 + 64**2 + 64 * 256 + 3 * 256**2) + 4 * (64 + 256 + 256) + 2560
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_network_layer_by_layer(small):
    model, x = small

    def step(layers, h, pool):
        conv, norm = layers[0], layers[-2]
        h = F.conv2d(h, conv.weight, padding=1)
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5)) if pool else h
        shape = (1, -1, 1, 1)
        h = (h - norm.running_mean.view(shape)) / torch.sqrt(norm.running_var.view(shape) + norm.eps)
        return torch.relu(h * norm.weight.view(shape) + norm.bias.view(shape))

    filters = torch.cat([model.first.filters, -model.first.filters])
    h = torch.relu(F.conv2d(x, filters) + model.first.bias.view(1, -1, 1, 1))
    for group in model.body[1:4]:
        h = step(group[0], h, pool=True)
        h = h + step(group[1].body[0], h, pool=False)
    torch.testing.assert_close(model(x), h.amax(dim=(2, 3)) @ model.last.weight.T / 8)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 9), (2, 13)])
def test_images_of_any_size(channels, size):
    model = WhitenedResNet(channels, width=4, classes=7)
    assert model(torch.rand(2, channels, size, size)).shape == (2, 7)
    assert isinstance(model.body[0], nn.GELU)


def test_gradient_reaches_every_weight(small):
    check_weights_matter(*small)


def test_mirrored_logits_are_the_mean_of_both_views_and_training_sees_one(small):
    model, x = small
    both = WhitenedResNet(width=4, activation="relu", mirror=True).double().eval()
    both.load_state_dict(model.state_dict())
    torch.testing.assert_close(both(x), (model(x) + model(x.flip(3))) / 2)
    torch.testing.assert_close(both(x.flip(3)), both(x))
    one = WhitenedResNet(width=4, activation="relu").double().train()
    one.load_state_dict(model.state_dict())
    assert torch.equal(one(x), both.train()(x))
