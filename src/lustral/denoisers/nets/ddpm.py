"""The U-Net of denoising diffusion probabilistic models (Ho et al., NeurIPS 2020).

The state dict has the names of diffusers' ``UNet2DModel`` as configured for ``google/ddpm-cifar10-32``. Older files
call an attention's ``to_q``, ``to_k``, ``to_v`` and ``to_out.0`` ``query``, ``key``, ``value`` and ``proj_attn``.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal features [b, width] of times [b]: sines, then cosines, frequencies from 1 down to 1/10000."""
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    half = width // 2
    frequency = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=t.device, dtype=t.dtype))
    angle = t[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Block(nn.Module):
    """GroupNorm–SiLU–conv, shifted by the embedding, GroupNorm–SiLU–dropout–conv, and a skip."""

    def __init__(self, inputs: int, outputs: int, emb: int, groups: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs, groups), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb, outputs)
        self.norm2, self.conv2 = _norm(outputs, groups), _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(emb)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    """Self-attention of one head over positions, with a residual connection."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = _norm(channels, groups)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Sequential(_zero(nn.Linear(channels, channels)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2).unsqueeze(1)  # [b, 1, h·w, c]
        mixed = F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out(mixed).squeeze(1).transpose(1, 2).reshape(x.shape)


class Level(nn.Module):
    """The blocks of one resolution, the first ``attentions`` of which attend; called one block at a time."""

    def __init__(self, inputs: list[int], outputs: int, emb: int, groups: int, dropout: float, attentions: int):
        super().__init__()
        self.resnets = nn.ModuleList(Block(i, outputs, emb, groups, dropout) for i in inputs)
        self.attentions = nn.ModuleList(Attention(outputs, groups) for _ in range(attentions))
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()

    def forward(self, x: Tensor, emb: Tensor, index: int) -> Tensor:
        h = self.resnets[index](x, emb)
        return self.attentions[index](h) if index < len(self.attentions) else h


class DDPM(nn.Module):
    """``net(x [b, channels, h, w] on [-1, 1], t [b]) -> [b, channels, h, w]``, t the index of the step, 0 … 999.

    ``mult`` gives the width of each level as a multiple of ``width``; ``attention`` lists the levels that attend, which
    the middle always does. h and w are multiples of 2^(levels-1). The defaults are the published CIFAR-10 network.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        mult: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (1,),
        dropout: float = 0.0,
        groups: int = 32,
    ):
        super().__init__()
        emb = 4 * width
        self.width = width
        self.time_embedding = nn.Sequential(
            OrderedDict(linear_1=nn.Linear(width, emb), act=nn.SiLU(), linear_2=nn.Linear(emb, emb))
        )
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        current, skips = width, [width]
        levels = [(level, width * m, level in attention) for level, m in enumerate(mult)]
        for level, w, attend in levels:
            inputs = [current] + [w] * (blocks - 1)
            down = Level(inputs, w, emb, groups, dropout, blocks * attend)
            skips += [w] * blocks
            if level + 1 < len(levels):
                down.downsamplers.append(_resample(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(w, w, 3, stride=2)))
                skips.append(w)
            self.down_blocks.append(down)
            current = w
        self.mid_block = Level([current, current], current, emb, groups, dropout, 1)
        for level, w, attend in reversed(levels):
            inputs = [n + skips.pop() for n in [current] + [w] * blocks]
            up = Level(inputs, w, emb, groups, dropout, (blocks + 1) * attend)
            if level:
                up.upsamplers.append(_resample(nn.Upsample(scale_factor=2), nn.Conv2d(w, w, 3, padding=1)))
            self.up_blocks.append(up)
            current = w
        self.conv_norm_out, self.conv_out = _norm(current, groups), _zero(nn.Conv2d(current, channels, 3, padding=1))

    @property
    def multiple(self) -> int:
        """What the sides of its images are multiples of."""
        return 2 ** (len(self.down_blocks) - 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = F.silu(
            self.time_embedding(embedding(t.to(torch.promote_types(t.dtype, x.dtype)), self.width).to(x.dtype))
        )
        h = self.conv_in(x)
        skips = [h]
        for level in self.down_blocks:
            for i in range(len(level.resnets)):
                h = level(h, emb, i)
                skips.append(h)
            for down in level.downsamplers:
                h = down(h)
                skips.append(h)
        for i in range(2):
            h = self.mid_block(h, emb, i)
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                h = level(torch.cat([h, skips.pop()], dim=1), emb, i)
            for up in level.upsamplers:
                h = up(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with ``groups`` groups, or as many as divide narrow layers."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=1e-6)


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _resample(change: nn.Module, conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(OrderedDict(change=change, conv=conv))
