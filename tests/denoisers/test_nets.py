"""Published denoiser networks: DDPM's U-Net against diffusers, DDPM++ and NCSNv2's RefineNet against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from lustral.denoisers.nets import ddpmpp as parts
from lustral.denoisers.nets.ddpm import DDPM, embedding
from lustral.denoisers.nets.ddpmpp import DDPMpp
from lustral.denoisers.nets.refinenet import ChainedPool, Fusion, InstanceNormPlus, RefineNet, ResidualConv
from lustral.denoisers.preconditioning import NCSN, VPEps
from lustral.schedules import DiscreteVP


def lively(net, seed=0):
    """The network in float64 without any weight at its initial value."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.double().parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return net.eval()


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TIMES = torch.tensor([0.0, 17.0, 998.5], dtype=torch.float64)


@pytest.fixture(scope="module")
def ddpm():
    torch.manual_seed(0)
    return lively(DDPM(width=32, mult=(1, 2), blocks=1))


@pytest.fixture(scope="module")
def refinenet():
    torch.manual_seed(0)
    return lively(RefineNet(width=8))


@pytest.fixture(scope="module")
def ddpmpp():
    torch.manual_seed(0)
    return lively(DDPMpp(width=16, mult=(1, 2), blocks=2))


@pytest.fixture(params=["ddpm", "ddpmpp", "refinenet"])
def call(request):
    """The network as a function of images and times, with its parameters."""
    net = request.getfixturevalue(request.param)
    return (lambda x, t: net(x) if request.param == "refinenet" else net(x, t)), net


# ------------------------------------------------------------------------------------------------------- all networks


def test_gradient_reaches_every_weight(call):
    function, net = call
    x = noise(3, 3, 8, 8).requires_grad_()
    (function(x, TIMES) ** 2).sum().backward()
    for name, tensor in [("x", x), *net.named_parameters()]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name
    net.zero_grad(set_to_none=True)


def test_a_row_alone_equals_the_row_in_its_batch(call):
    function, _ = call
    x = noise(3, 3, 8, 8)
    alone = torch.cat([function(x[i : i + 1], TIMES[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, function(x, TIMES), rtol=0, atol=1e-10)


# --------------------------------------------------------------------------------------------------------------- DDPM


def published(width, mult, blocks, attention, groups):
    """diffusers' network, configured as google/ddpm-cifar10-32 in all that these arguments leave open."""
    from diffusers import UNet2DModel

    down = ["AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(mult))]
    up = ["AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(len(mult)))]
    return UNet2DModel(
        sample_size=32,
        block_out_channels=tuple(width * m for m in mult),
        layers_per_block=blocks,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        norm_num_groups=groups,
        norm_eps=1e-6,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )


@pytest.mark.parametrize(
    ("width", "mult", "blocks", "attention", "groups"),
    [(32, (1, 2, 2, 2), 2, (1,), 32), (16, (1, 2), 1, (), 8), (16, (1, 3, 2), 2, (0, 2), 4)],
    ids=["as-published", "plain", "uneven"],
)
def test_ddpm_is_the_network_of_diffusers(width, mult, blocks, attention, groups):
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = lively(published(width, mult, blocks, attention, groups))
    ours = DDPM(3, width, mult, blocks, attention, groups=groups).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, t = noise(2, 3, 16, 16), torch.tensor([3, 998])
    expected = theirs(x, t).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x, t), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.float()(x.float(), t), theirs.float()(x.float(), t).sample, rtol=0, atol=1e-4)


def test_parameters_of_the_published_ddpm():
    with torch.device("meta"):
        net = DDPM()
    assert sum(p.numel() for p in net.parameters()) == 35_746_307


@pytest.mark.parametrize(("channels", "size", "width"), [(1, 28, 8), (3, 32, 32), (1, 8, 12)])
def test_ddpm_keeps_the_shape_and_starts_at_zero(channels, size, width):
    """Also at widths that 32 groups do not divide."""
    net = DDPM(channels, width=width, mult=(1, 2, 2), blocks=1)
    x = torch.randn(2, channels, size, size)
    assert torch.equal(net(x, torch.tensor([0.0, 500.0])), torch.zeros_like(x))


def test_embedding_is_sines_then_cosines_from_one_to_a_ten_thousandth():
    found = embedding(torch.tensor([7]), 8)
    frequencies = [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4]
    angles = 7 * torch.tensor(frequencies)
    torch.testing.assert_close(found, torch.cat([angles.sin(), angles.cos()])[None])
    assert embedding(TIMES, 8).dtype == torch.float64
    assert embedding(TIMES.bfloat16(), 8).dtype == torch.float32


def test_dropout_acts_in_training_alone():
    net = lively(DDPM(width=8, mult=(1,), blocks=1, dropout=0.5))
    x = noise(3, 3, 8, 8)
    assert torch.equal(net(x, TIMES), net(x, TIMES))
    net.train()
    assert not torch.equal(net(x, TIMES), net(x, TIMES))


def test_ddpm_takes_gradients_through_its_times(ddpm):
    """Against central differences, in float64: sample-specific times need them."""
    x, t, h = noise(3, 3, 8, 8), TIMES.clone().requires_grad_(), 1e-4
    found = torch.autograd.grad(ddpm(x, t).sum(), t)[0]
    with torch.no_grad():
        expected = (ddpm(x, TIMES + h) - ddpm(x, TIMES - h)).sum(dim=(1, 2, 3)) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_preconditioned_ddpm_is_asked_for_integer_steps(ddpm):
    """D = v − s·ε(√ᾱ·v, n − 1) by hand, for n = 1 and n = 400 of Ho et al.'s thousand."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = (1 - betas).cumprod(0)[[0, 399]].view(-1, 1, 1, 1)
    x, s = noise(2, 3, 8, 8), torch.sqrt((1 - alpha) / alpha)
    found = VPEps(ddpm, DiscreteVP.linear(), discrete=True)(x, (s / 2).flatten())
    v = 2 * x - 1
    expected = v - s * ddpm(alpha.sqrt() * v, torch.tensor([0.0, 399.0], dtype=torch.float64))
    torch.testing.assert_close(found, (expected + 1) / 2)


# ------------------------------------------------------------------------------------------------------------- DDPM++


def test_parameters_of_the_published_ddpmpp():
    """The published file has 1 707 310 559 bytes: weights, their average and Adam's two moments, 4 bytes each."""
    with torch.device("meta"):
        count = sum(p.numel() for p in DDPMpp().parameters())
    assert count == pytest.approx(1_707_310_559 / 16, rel=1e-3)


def test_modules_of_ddpmpp_come_in_the_order_of_published_checkpoints(ddpmpp):
    """Two levels, the lower attends: embedding, first convolution, way down, middle, way up, last convolution."""
    order = "Linear Linear Conv2d Block Block Block Block Attention Block Attention Block Attention Block"
    order += " Block Block Block Attention Block Block Block Block GroupNorm Conv2d"
    assert [type(m).__name__ for m in ddpmpp.all_modules] == order.split()
    block = {name.split(".", 2)[2] for name in ddpmpp.state_dict() if name.startswith("all_modules.6.")}
    layers = ("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2")
    assert block == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    attention = {name.split(".", 2)[2] for name in ddpmpp.state_dict() if name.startswith("all_modules.7.")}
    assert attention == {"GroupNorm_0.weight", "GroupNorm_0.bias", *(f"NIN_{i}.{k}" for i in range(4) for k in "Wb")}


@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_a_block_of_ddpmpp_is_its_formula(scale):
    torch.manual_seed(0)
    block = lively(parts.Block(8, 16, 12, dropout=0.0, scale=scale))
    x, emb = noise(2, 8, 4, 4), noise(2, 12, seed=2)

    def resampled(v):
        if scale == 0.5:
            return v.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
        return v.repeat_interleave(int(scale), 2).repeat_interleave(int(scale), 3)

    def active(v, norm, groups):
        grouped = v.view(2, groups, -1)
        flat = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, keepdim=True, correction=0) + 1e-6).sqrt()
        v = flat.view_as(v) * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        return v * v.sigmoid()

    h = F.conv2d(resampled(active(x, block.GroupNorm_0, 2)), block.Conv_0.weight, block.Conv_0.bias, padding=1)
    h = h + (emb * emb.sigmoid() @ block.Dense_0.weight.T + block.Dense_0.bias)[:, :, None, None]
    h = F.conv2d(active(h, block.GroupNorm_1, 4), block.Conv_1.weight, block.Conv_1.bias, padding=1)
    skip = F.conv2d(resampled(x), block.Conv_2.weight, block.Conv_2.bias)
    torch.testing.assert_close(block(x, emb), (skip + h) / 2**0.5)


def test_attention_of_ddpmpp_is_its_formula():
    torch.manual_seed(0)
    layer = lively(parts.Attention(8))
    x = noise(2, 8, 3, 2)
    h = layer.GroupNorm_0(x).flatten(2).transpose(1, 2)
    q, k, v = (h @ mix.W + mix.b for mix in (layer.NIN_0, layer.NIN_1, layer.NIN_2))
    mixed = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=2) @ v
    wanted = (x + (mixed @ layer.NIN_3.W + layer.NIN_3.b).transpose(1, 2).view_as(x)) / 2**0.5
    torch.testing.assert_close(layer(x), wanted)


def test_ddpmpp_keeps_the_shape_and_starts_at_zero():
    torch.manual_seed(0)
    net = DDPMpp(1, 8, (1, 2, 2), blocks=1)
    out = net(torch.randn(2, 1, 12, 8), torch.tensor([0.0, 999.0]))
    assert torch.equal(out, torch.zeros(2, 1, 12, 8))


# ---------------------------------------------------------------------------------------------------------- RefineNet


def test_instance_norm_plus_is_its_formula():
    """Channel by channel in plain Python: γ·((x − μ)/s + α·(μ − m)/v) + β, v² unbiased as published."""
    layer, x = lively(InstanceNormPlus(5)), 3 + 2 * noise(2, 5, 4, 3)
    expected = torch.empty_like(x)
    for b in range(2):
        means = [float(x[b, c].mean()) for c in range(5)]
        m = sum(means) / 5
        v2 = sum((mean - m) ** 2 for mean in means) / 4
        for c in range(5):
            s2 = float(((x[b, c] - means[c]) ** 2).mean())
            scaled = (x[b, c] - means[c]) / (s2 + 1e-5) ** 0.5
            colour = layer.alpha[c] * (means[c] - m) / (v2 + 1e-5) ** 0.5
            expected[b, c] = layer.gamma[c] * (scaled + colour) + layer.beta[c]
    torch.testing.assert_close(layer(x), expected)


def test_parts_of_refinenet_are_their_formulas():
    x, small = noise(2, 4, 8, 8), noise(2, 6, 3, 3)

    def conv(h, layer):
        return F.conv2d(h, layer.weight, layer.bias, padding=1)

    units = lively(ResidualConv(4, 2))
    convs = dict(units.named_children())
    assert list(convs) == ["1_1_conv", "1_2_conv", "2_1_conv", "2_2_conv"]
    h = x + conv(F.elu(conv(F.elu(x), convs["1_1_conv"])), convs["1_2_conv"])
    h = h + conv(F.elu(conv(F.elu(h), convs["2_1_conv"])), convs["2_2_conv"])
    torch.testing.assert_close(units(x), h)

    pool = lively(ChainedPool(4))
    widest = F.pad(F.elu(x), (2, 2, 2, 2), value=-torch.inf).unfold(2, 5, 1).unfold(3, 5, 1).amax(dim=(4, 5))
    first = conv(widest, pool.convs[0])
    widest = F.pad(first, (2, 2, 2, 2), value=-torch.inf).unfold(2, 5, 1).unfold(3, 5, 1).amax(dim=(4, 5))
    torch.testing.assert_close(pool(x), F.elu(x) + first + conv(widest, pool.convs[1]))

    fusion = lively(Fusion((4, 6), 5))
    out = fusion([x, small], (8, 8))
    corners = conv(x, fusion.convs[0]), conv(small, fusion.convs[1])
    for i in (0, -1):  # with aligned corners the corners are not mixed
        torch.testing.assert_close(out[..., i, i], corners[0][..., i, i] + corners[1][..., i, i])


def test_refinenet_has_the_tensors_of_ncsnv2():
    """The public code's network has 117 323 numbers at width 8 in 153 tensors, and its sigmas.

    All convolutions of the residual blocks have a bias, those of the refining units and pools none.
    """
    state = RefineNet(width=8).state_dict()
    assert len(state) == 153
    assert sum(t.numel() for t in state.values()) == 117_323
    inside = {name.removesuffix(".weight") for name in state if name.startswith("res") and ".normalize" not in name}
    assert {f"{name}.bias" for name in inside if not name.endswith(".bias")} <= state.keys()
    assert {"res1.0.conv1.bias", "res1.1.conv2.bias", "res2.0.conv1.bias", "res2.1.conv2.bias"} <= state.keys()
    plain = [name for name in state if "adapt_convs" in name or ".crp." in name or "output_convs" in name]
    assert len(plain) == 48
    assert not any(name.endswith(".bias") for name in plain)


def test_refinenet_halves_once_and_dilates_after(refinenet):
    shapes, kernels = {}, {}
    for name in ("res1", "res2", "res3", "res4", "refine1", "refine4"):
        getattr(refinenet, name).register_forward_hook(
            lambda module, args, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
    refinenet(noise(1, 3, 12, 12))
    assert shapes == {
        "res1": (8, 12, 12),
        "res2": (16, 6, 6),
        "res3": (16, 6, 6),
        "res4": (16, 6, 6),
        "refine1": (16, 6, 6),
        "refine4": (8, 12, 12),
    }
    for name in ("res2", "res3", "res4"):
        kernels[name] = {m.dilation[0] for m in getattr(refinenet, name).modules() if isinstance(m, torch.nn.Conv2d)}
    assert kernels == {"res2": {1}, "res3": {2}, "res4": {4}}


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 8)])
def test_refinenet_keeps_the_shape(channels, size):
    x = torch.rand(2, channels, size, size)
    assert RefineNet(channels, width=16)(x).shape == x.shape


def test_refinenet_takes_images_in_the_unit_range(refinenet):
    """x ↦ 2x − 1 stands before everything: the first convolution then sees [-1, 1]."""
    seen = []
    handle = refinenet.begin_conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = noise(2, 3, 8, 8)
    refinenet(x)
    handle.remove()
    torch.testing.assert_close(seen[0], 2 * x - 1)


def test_the_preconditioned_field_scales_with_sigma(refinenet):
    """The network knows no sigma: D − x grows in proportion to it."""
    x = noise(2, 3, 8, 8)
    denoiser = NCSN(refinenet)
    small, large = (denoiser(x, torch.full((2,), sigma, dtype=torch.float64)) - x for sigma in (0.1, 0.3))
    torch.testing.assert_close(large, 3 * small)
