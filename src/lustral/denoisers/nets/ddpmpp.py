"""DDPM++, the U-Net of score-based diffusion (Song et al., ICLR 2021), with which DiffPure, ADBM and SSNI purify.

The state dict has the names of the published checkpoints, ``all_modules.N``: modules in the order in which they act.
A checkpoint's ``sigmas`` are not used; its EMA weights are in the order of ``parameters()``.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ddpm import embedding


class Mix(nn.Module):
    """A 1×1 convolution whose weight is [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int, gain: float = math.sqrt(0.1)):
        super().__init__()
        self.W = nn.Parameter(torch.empty(inputs, outputs))
        self.b = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.W, gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W.T[:, :, None, None], self.b)


class Attention(nn.Module):
    """Self-attention of one head over positions; (x + h)/√2."""

    def __init__(self, channels: int):
        super().__init__()
        self.GroupNorm_0 = _norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2 = (Mix(channels, channels) for _ in range(3))
        self.NIN_3 = Mix(channels, channels, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (mix(h).flatten(2).transpose(1, 2)[:, None] for mix in (self.NIN_0, self.NIN_1, self.NIN_2))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return (x + self.NIN_3(mixed)) / math.sqrt(2)


class Block(nn.Module):
    """BigGAN's residual block: resampling between the first activation and the first convolution; (x + h)/√2.

    ``scale`` is 1, 2 (nearest neighbour) or ½ (mean of 2×2).
    """

    def __init__(self, inputs: int, outputs: int, emb: int, dropout: float, scale: float = 1):
        super().__init__()
        self.scale = scale
        self.GroupNorm_0, self.Conv_0 = _norm(inputs), _conv(inputs, outputs)
        self.Dense_0 = _linear(emb, outputs)
        self.GroupNorm_1, self.Dropout_0 = _norm(outputs), nn.Dropout(dropout)
        self.Conv_1 = _conv(outputs, outputs, gain=0.0)
        self.Conv_2 = nn.Identity() if inputs == outputs and scale == 1 else _conv(inputs, outputs, size=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.Conv_0(self._resample(F.silu(self.GroupNorm_0(x)))) + self.Dense_0(F.silu(emb))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(F.silu(self.GroupNorm_1(h))))
        return (self.Conv_2(self._resample(x)) + h) / math.sqrt(2)

    def _resample(self, x: Tensor) -> Tensor:
        if self.scale == 1:
            return x
        return F.interpolate(x, scale_factor=2) if self.scale == 2 else F.avg_pool2d(x, 2)


class DDPMpp(nn.Module):
    """``net(x [b, channels, h, w] on [-1, 1], t [b] on [0, 999]) -> [b, channels, h, w]``, the noise estimate.

    ``mult`` gives the width of each level as a multiple of ``width``; ``attention`` lists the levels that attend, which
    the middle always does. h and w are multiples of 2^(levels-1). The defaults are the published deep CIFAR-10 network.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        mult: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 8,
        attention: tuple[int, ...] = (1,),
        dropout: float = 0.0,
    ):
        super().__init__()
        self.width, self.levels, self.blocks, self.attention = width, len(mult), blocks, attention
        self.all_modules = nn.ModuleList(self._made(channels, width, mult, dropout))

    def _made(self, channels: int, width: int, mult: tuple[int, ...], dropout: float) -> Iterator[nn.Module]:
        """All modules, in order."""
        emb = 4 * width

        def block(inputs: int, outputs: int, scale: float = 1) -> Block:
            return Block(inputs, outputs, emb, dropout, scale)

        yield from (_linear(width, emb), _linear(emb, emb), _conv(channels, width))
        current, skips = width, [width]
        for level, w in enumerate(width * m for m in mult):
            for _ in range(self.blocks):
                yield block(current, w)
                if level in self.attention:
                    yield Attention(w)
                current = w
                skips.append(w)
            if level + 1 < self.levels:
                yield block(w, w, scale=0.5)
                skips.append(w)
        yield from (block(current, current), Attention(current), block(current, current))
        for level in reversed(range(self.levels)):
            for _ in range(self.blocks + 1):
                yield block(current + skips.pop(), width * mult[level])
                current = width * mult[level]
            if level in self.attention:
                yield Attention(current)
            if level:
                yield block(current, current, scale=2)
        yield from (_norm(current), _conv(current, channels, gain=0.0))

    @property
    def multiple(self) -> int:
        """What the sides of its images are multiples of."""
        return 2 ** (self.levels - 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        modules = iter(self.all_modules)
        emb = next(modules)(embedding(t.to(torch.promote_types(t.dtype, x.dtype)), self.width).to(x.dtype))
        emb = next(modules)(F.silu(emb))
        h = next(modules)(x)
        skips = [h]
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(modules)(h, emb)
                h = next(modules)(h) if level in self.attention else h
                skips.append(h)
            if level + 1 < self.levels:
                h = next(modules)(h, emb)
                skips.append(h)
        h = next(modules)(h, emb)
        h = next(modules)(h)
        h = next(modules)(h, emb)
        for level in reversed(range(self.levels)):
            for _ in range(self.blocks + 1):
                h = next(modules)(torch.cat([h, skips.pop()], dim=1), emb)
            h = next(modules)(h) if level in self.attention else h
            h = next(modules)(h, emb) if level else h
        norm, last = modules
        return last(F.silu(norm(h)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _conv(inputs: int, outputs: int, gain: float = 1.0, size: int = 3) -> nn.Conv2d:
    return _initialised(nn.Conv2d(inputs, outputs, size, padding=size // 2), gain)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return _initialised(nn.Linear(inputs, outputs), 1.0)


def _initialised(layer: nn.Conv2d | nn.Linear, gain: float) -> nn.Conv2d | nn.Linear:
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
