"""The compact U-Net: shapes, patches, blocks with and without normalisation, attention, gradients."""

import math

import pytest
import torch
from torch import nn

from components import lively
from lustral.core.errors import UserError
from lustral.denoisers.nets.unet import Attention, Plain, UNet

SHAPES = [(1, 8, (1, 2), 1), (3, 12, (1, 2, 2), 1), (2, 5, (2,), 1), (2, 8, (1, 2), 2)]


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return lively(UNet(channels=2, width=16, mult=(1, 2), blocks=1, attention=(1,)))


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(("channels", "size", "mult", "patch"), SHAPES)
def test_unet_keeps_the_shape_and_starts_at_zero(channels, size, mult, patch, normalised):
    """A zero output makes a fresh EDM denoiser the linear one."""
    net = UNet(channels, width=8, mult=mult, blocks=1, patch=patch, normalised=normalised)
    x = torch.randn(3, channels, size, size)
    assert torch.equal(net(x, torch.zeros(3)), torch.zeros_like(x))


def test_unet_on_patches_is_a_unet_on_folded_channels():
    torch.manual_seed(0)
    folded = lively(UNet(channels=8, width=8, mult=(1, 2), blocks=1))
    net = UNet(channels=2, width=8, mult=(1, 2), blocks=1, patch=2)
    net.load_state_dict(folded.state_dict())
    x, k = torch.randn(3, 2, 8, 8), torch.randn(3)
    pixels = x.view(3, 2, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(3, 8, 4, 4)
    expected = folded(pixels, k).view(3, 2, 2, 2, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(3, 2, 8, 8)
    assert torch.equal(net(x, k), expected)


def test_unet_hears_its_conditioning(unet):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 8, 8).expand(3, -1, -1, -1)
    for net in (unet, lively(UNet(channels=2, width=16, mult=(1, 2), blocks=1, normalised=False))):
        out = net(x, torch.tensor([-1.0, 0.0, 0.3]))
        assert all((out[i] - out[j]).abs().max() > 1e-3 for i, j in [(0, 1), (1, 2), (0, 2)])


def test_a_plain_block_begins_as_its_skip_which_keeps_the_variance():
    torch.manual_seed(0)
    x, emb = torch.randn(16, 32, 8, 8), torch.randn(16, 4)
    assert torch.equal(Plain(32, 32, 4)(x, emb), x)
    assert Plain(32, 64, 4)(x, emb).var().item() == pytest.approx(1, rel=0.2)


def test_without_normalisation_an_output_depends_on_near_pixels_only():
    """Ten 3×3 convolutions: the first, two in each of four blocks, and the last."""
    net = lively(UNet(channels=1, width=8, mult=(1,), blocks=1, normalised=False))
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(4)).requires_grad_()
    influence = torch.autograd.grad(net(x, torch.zeros(1))[0, 0, 0, 0], x)[0][0, 0].abs()
    assert influence[10, 10] > 0
    assert influence[11:].max() == 0


def test_a_unet_that_attends_is_normalised():
    with pytest.raises(UserError, match="attends is normalised"):
        UNet(attention=(1,), normalised=False)


def test_attention_takes_any_width():
    assert UNet(width=56, mult=(1, 2), attention=(0, 1))(torch.zeros(1, 3, 8, 8), torch.zeros(1)).shape == (1, 3, 8, 8)


def test_attention_joins_distant_pixels():
    """Far corners see each other through attention, and not through one level of 3×3 convolutions."""
    influence = {}
    for attention in ((), (0,)):
        torch.manual_seed(0)
        net = lively(UNet(channels=1, width=8, mult=(1,), blocks=1, attention=attention))
        for module in net.modules():  # GroupNorm averages over the image, so it would join them too
            for name, child in module.named_children():
                if isinstance(child, nn.GroupNorm):
                    setattr(module, name, nn.Identity())
        x = torch.randn(1, 1, 24, 24, generator=torch.Generator().manual_seed(4)).requires_grad_()
        corner = net(x, torch.zeros(1))[0, 0, 0, 0]
        influence[attention] = float(torch.autograd.grad(corner, x)[0][0, 0, -1, -1].abs())
    assert influence[()] == 0
    assert influence[0,] > 0


def test_attention_sits_in_every_block_of_the_levels_that_are_named():
    """Level 1 of 16×16 images is 8×8: two blocks down, the middle (level 1 is the last), three blocks up."""
    net, sizes = UNet(channels=1, width=8, mult=(1, 2), blocks=2, attention=(1,)), []
    for module in net.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape[1:])))
    net(torch.randn(1, 1, 16, 16), torch.zeros(1))
    assert sizes == [(16, 8, 8)] * 6


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_softmax_attention(heads):
    """Against the formula, position by position, in float64."""
    torch.manual_seed(0)
    layer = lively(Attention(32 * heads, head=32)).double()
    x = torch.randn(2, 32 * heads, 2, 3, dtype=torch.float64)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)
    mixed = []
    for h in range(heads):
        part = slice(32 * h, 32 * h + 32)
        weights = torch.softmax(q[:, part].transpose(1, 2) @ k[:, part] / math.sqrt(32), dim=-1)
        mixed.append((weights @ v[:, part].transpose(1, 2)).transpose(1, 2))
    out = layer.out(torch.cat(mixed, dim=1).view_as(x))
    torch.testing.assert_close(layer(x), (x + out) * math.sqrt(0.5))


def test_unet_gradient_is_finite_and_reaches_every_weight(unet):
    x = torch.randn(2, 2, 8, 8).requires_grad_()
    (unet(x, torch.tensor([-2.0, 0.1])) ** 2).sum().backward()
    for name, tensor in [("x", x), *unet.named_parameters()]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name
    unet.zero_grad(set_to_none=True)


def test_unet_rows_do_not_see_their_neighbours(unet):
    x, k = torch.randn(4, 2, 8, 8).requires_grad_(), torch.tensor([-1.0, 0.2, 0.5, 0.9])
    gradient = torch.autograd.grad(unet(x, k)[1].sum(), x)[0]
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2, 3]].abs().max() == 0
    torch.testing.assert_close(unet(x, k)[1:2], unet(x[1:2], k[1:2]), rtol=1e-4, atol=1e-5)
