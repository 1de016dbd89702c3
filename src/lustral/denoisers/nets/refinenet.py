"""The score network of NCSNv2 (Song and Ermon, NeurIPS 2020): a cascaded RefineNet with dilated residual blocks.

RefineNet is by Lin et al. (CVPR 2017), InstanceNorm++ by Song and Ermon (NeurIPS 2019). Written from the papers; the
state dict's names, shapes and biases are those of the public code, and so are its outputs (without the division below).
There is no noise conditioning, and no division by sigma: that is the preconditioning's (``NCSN``).
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InstanceNormPlus(nn.Module):
    """γ·((x − μ)/s + α·(μ − m)/v) + β, with μ, s of each channel's pixels and m, v of the μ over the channels.

    Plain instance normalisation forgets the channels' means, which hold an image's colours.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.alpha, self.gamma = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.beta = nn.Parameter(torch.zeros(channels))
        nn.init.normal_(self.alpha, 1, 0.02)
        nn.init.normal_(self.gamma, 1, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3))
        v, m = torch.var_mean(means, dim=1, keepdim=True)
        shift = self.gamma * self.alpha * (means - m) * torch.rsqrt(v + self.eps)
        return F.instance_norm(x, weight=self.gamma, bias=self.beta, eps=self.eps) + shift[:, :, None, None]


class Block(nn.Module):
    """Norm–ELU–conv twice, and a skip. A ``down`` block halves the image, or with a dilation widens its view."""

    def __init__(self, inputs: int, outputs: int, down: bool = False, dilation: int = 1):
        super().__init__()
        inner = inputs if down else outputs
        self.normalize1, self.conv1 = InstanceNormPlus(inputs), _conv(inputs, inner, dilation)
        self.normalize2 = InstanceNormPlus(inner)
        if down and dilation == 1:
            self.conv2, self.shortcut = _conv_pool(inner, outputs, 3), _conv_pool(inputs, outputs, 1)
        else:
            self.conv2 = _conv(inner, outputs, dilation)
            self.shortcut = _conv(inputs, outputs, dilation) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.elu(self.normalize1(x)))
        return self.shortcut(x) + self.conv2(F.elu(self.normalize2(h)))


class ResidualConv(nn.Module):
    """RCU: so many residual units of two ELU–conv each."""

    def __init__(self, channels: int, units: int):
        super().__init__()
        for i in range(units):
            for j in range(2):
                self.add_module(f"{i + 1}_{j + 1}_conv", _conv(channels, channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        convs = list(self.children())
        for first, second in zip(convs[::2], convs[1::2], strict=True):
            x = x + second(F.elu(first(F.elu(x))))
        return x


class Fusion(nn.Module):
    """MSF: the sum of its inputs, each convolved to ``outputs`` channels and enlarged to ``size``."""

    def __init__(self, inputs: tuple[int, ...], outputs: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(n, outputs, 3, padding=1) for n in inputs)

    def forward(self, xs: list[Tensor], size: tuple[int, int]) -> Tensor:
        hs = [conv(x) for conv, x in zip(self.convs, xs, strict=True)]
        return sum(F.interpolate(h, size, mode="bilinear", align_corners=True) for h in hs)


class ChainedPool(nn.Module):
    """CRP: ELU, then the sum of a chain of pool–conv, which gathers context."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(_conv(channels, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        total = path = F.elu(x)
        for conv in self.convs:
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            total = total + path
        return total


class Refine(nn.Module):
    """Residual units on each input, fusion of several at the first one's size, context, residual units."""

    def __init__(self, inputs: tuple[int, ...], outputs: int, units: int = 1):
        super().__init__()
        self.adapt_convs = nn.ModuleList(ResidualConv(n, 2) for n in inputs)
        if len(inputs) > 1:
            self.msf = Fusion(inputs, outputs)
        self.crp, self.output_convs = ChainedPool(outputs), ResidualConv(outputs, units)

    def forward(self, *xs: Tensor) -> Tensor:
        hs = [adapt(x) for adapt, x in zip(self.adapt_convs, xs, strict=True)]
        h = self.msf(hs, tuple(xs[0].shape[2:])) if len(hs) > 1 else hs[0]
        return self.output_convs(self.crp(h))


class RefineNet(nn.Module):
    """``net(x [b, channels, h, w] in [0, 1]) -> [b, channels, h, w]``, h and w even; the field sigma·score.

    The published network for images of 32 × 32 and 64 × 64 has ``width`` 128.
    """

    def __init__(self, channels: int = 3, width: int = 128):
        super().__init__()
        w, ww = width, 2 * width
        self.begin_conv = nn.Conv2d(channels, w, 3, padding=1)
        self.res1 = nn.Sequential(Block(w, w), Block(w, w))
        self.res2 = nn.Sequential(Block(w, ww, down=True), Block(ww, ww))
        self.res3 = nn.Sequential(Block(ww, ww, down=True, dilation=2), Block(ww, ww, dilation=2))
        self.res4 = nn.Sequential(Block(ww, ww, down=True, dilation=4), Block(ww, ww, dilation=4))
        self.refine1, self.refine2 = Refine((ww,), ww), Refine((ww, ww), ww)
        self.refine3, self.refine4 = Refine((ww, ww), w), Refine((w, w), w, units=3)
        self.normalizer, self.end_conv = InstanceNormPlus(w), nn.Conv2d(w, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h1 = self.res1(self.begin_conv(2 * x - 1))
        h2 = self.res2(h1)
        h3 = self.res3(h2)
        refined = self.refine2(h3, self.refine1(self.res4(h3)))
        refined = self.refine4(h1, self.refine3(h2, refined))
        return self.end_conv(F.elu(self.normalizer(refined)))


def _conv(inputs: int, outputs: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """3×3 of unchanged size; those of the residual blocks have a bias, those of the refining ones have none."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


def _conv_pool(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(OrderedDict(conv=conv, pool=nn.AvgPool2d(2)))
