"""A compact U-Net: residual blocks with SiLU and noise embedding, and GroupNorm or none; optional attention (SDPA)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import UserError


def embedding(value: Tensor, width: int) -> Tensor:
    """Sinusoidal features [b, width] of a scalar conditioning [b], frequencies from 1 to about 100."""
    frequency = torch.exp(torch.linspace(0, math.log(100.0), width // 2, device=value.device, dtype=value.dtype))
    angle = value[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class GroupNorm(nn.GroupNorm):
    """torch's, in up to 8 groups; compiled, from sums over each channel.

    A product spreads these over their group: where channels find their group by an index, inductor makes no vector code
    for CPUs.
    """

    def __init__(self, channels: int):
        groups = math.gcd(8, channels)
        super().__init__(groups, channels)
        size = channels // groups
        self.register_buffer("share", torch.eye(groups).kron(torch.full((size, size), 1 / size)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):  # the variance is a small difference
            whole = x.to(torch.promote_types(x.dtype, torch.float32))
            mean, square = (part.mean(dim=(2, 3)) @ self.share.to(whole) for part in (whole, whole * whole))
        scale = torch.rsqrt((square - mean * mean).clamp_min(0) + self.eps) * self.weight
        shift = self.bias - mean * scale
        return x * scale[:, :, None, None] + shift[:, :, None, None]


class Block(nn.Module):
    """GroupNorm–SiLU–conv, scaled and shifted by the embedding, GroupNorm–SiLU–conv, and a skip; optional attention."""

    def __init__(self, inputs: int, outputs: int, emb: int, attention: bool = False):
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(emb, 2 * outputs)
        self.norm2, self.conv2 = GroupNorm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs) if attention else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), scale + 1)))
        return self.attention((self.skip(x) + h) * math.sqrt(0.5))


class Plain(nn.Module):
    """SiLU–conv, shifted by the embedding, SiLU–conv, and a skip: no normalisation, as in DRUNet (Zhang et al., 2021).

    The second convolution begins at zero and the first and the skip keep the variance, so that depth changes nothing at
    first.
    """

    def __init__(self, inputs: int, outputs: int, emb: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shift = nn.Linear(emb, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()
        nn.init.kaiming_normal_(self.conv1.weight)
        if inputs != outputs:
            nn.init.kaiming_normal_(self.skip.weight, nonlinearity="linear")
        for parameter in (self.conv1.bias, *self.shift.parameters(), *self.conv2.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(x)) + self.shift(emb)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Self-attention over positions, with a residual connection."""

    def __init__(self, channels: int, head: int = 32):
        super().__init__()
        self.heads = next(n for n in range(max(1, channels // head), 0, -1) if channels % n == 0)
        self.norm, self.qkv = GroupNorm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, h, w)
        return (x + self.out(mixed)) * math.sqrt(0.5)


class UNet(nn.Module):
    """``net(x [b, channels, h, w], conditioning [b]) -> [b, channels, h, w]``, h and w multiples of patch·2^(levels-1).

    Without ``conditioning`` it is not told the noise, as NCSNv2's networks are not.
    ``mult`` gives the width of each level as a multiple of ``width``; ``attention`` lists the levels that attend. The
    network works on ``patch`` × ``patch`` pixels at a time, folded into channels, which divides its cost by patch².
    It goes to channels last by itself: the fastest layout on a CPU, or as fast, in all that was measured.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        mult: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (),
        patch: int = 1,
        normalised: bool = True,
    ):
        super().__init__()
        if attention and not normalised:
            raise UserError("A U-Net that attends is normalised; leave attention or normalised=False out.")
        emb = 4 * width
        self.width, self.normalised = width, normalised

        def block(inputs: int, outputs: int, level: int) -> nn.Module:
            return Block(inputs, outputs, emb, level in attention) if normalised else Plain(inputs, outputs, emb)

        self.embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb), nn.SiLU())
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.first = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        widths = [width * m for m in mult]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = width, [width]
        for level, w in enumerate(widths):
            if level:
                self.down.append(nn.AvgPool2d(2))
                skips.append(current)
            for _ in range(blocks):
                self.down.append(block(current, w, level))
                current = w
                skips.append(w)
        self.middle = block(current, current, len(widths) - 1)
        for level, w in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), w, level))
                current = w
            if level:
                self.up.append(nn.Upsample(scale_factor=2, mode="nearest"))
        outputs = nn.Conv2d(current, channels * patch**2, 3, padding=1)
        self.last = nn.Sequential(GroupNorm(current) if normalised else nn.Identity(), nn.SiLU(), outputs)
        nn.init.zeros_(self.last[-1].weight)
        nn.init.zeros_(self.last[-1].bias)

    @property
    def multiple(self) -> int:
        """What the sides of its images are multiples of."""
        return self.fold.downscale_factor * 2 ** sum(isinstance(layer, nn.AvgPool2d) for layer in self.down)

    def forward(self, x: Tensor, conditioning: Tensor | None = None) -> Tensor:
        conditioning = x.new_zeros(len(x)) if conditioning is None else conditioning
        level = conditioning.to(torch.promote_types(conditioning.dtype, x.dtype))
        emb = self.embed(embedding(level, self.width).to(x.dtype))
        h = self.first(self.fold(x).contiguous(memory_format=torch.channels_last))
        skips = [h]
        for layer in self.down:
            h = layer(h, emb) if isinstance(layer, Block | Plain) else layer(h)
            skips.append(h)
        h = self.middle(h, emb)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), emb) if isinstance(layer, Block | Plain) else layer(h)
        return self.unfold(self.last(h))
