"""The 15 common corruptions of CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019), from their definitions.

Severities 1 to 5 are those of the generator of CIFAR-10-C, which are milder than ImageNet-C's. Lengths are in pixels of
32×32 images, also for other sizes. Noise is addressed by name, severity and id: an image is corrupted alike in any
subset. Where the published generator draws on outside material we say so: ``frost`` lays a plasma texture over the
image, in place of photographs. ``glass_blur`` overwrites pixels where a swap was meant, as the generator does.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from scipy.stats import poisson
from torch import Tensor

from ...core.errors import UserError, unknown
from ...core.noise import Key, Rng
from ...evaluate.protocol import Data
from ...training.batches import as_floats

SEVERITIES = ("1", "2", "3", "4", "5")
Corruption = Callable[[Tensor, int, Rng], Tensor]


def corrupt(data: Data, what: str) -> Data:
    """The images under one corruption, ``what`` naming it and its severity like ``fog-3``; 8-bit images stay so."""
    name, _, severity = what.rpartition("-")
    if severity not in SEVERITIES:
        raise UserError(f"A corruption is named with its severity, 1 to 5, like fog-3, not {what!r}.")
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    rng = Key(0, ("corruption", name, int(severity))).rng(data.ids)
    out = CORRUPTIONS[name](as_floats(data.x), int(severity) - 1, rng).clamp(0, 1)
    return data._replace(x=(out * 255).to(torch.uint8) if data.x.dtype == torch.uint8 else out)


def gaussian_noise(x: Tensor, level: int, rng: Rng) -> Tensor:
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[level] * rng.normal(x)


def shot_noise(x: Tensor, level: int, rng: Rng) -> Tensor:
    photons = (500, 250, 100, 75, 50)[level]
    return torch.from_numpy(poisson.ppf(rng.uniform(x).double(), photons * x.double()) / photons).to(x)


def impulse_noise(x: Tensor, level: int, rng: Rng) -> Tensor:
    flipped = rng.fold("where").uniform(x) < (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    return torch.where(flipped, (rng.fold("salt").uniform(x) < 0.5).to(x), x)


def defocus_blur(x: Tensor, level: int, rng: Rng) -> Tensor:
    radius, softening = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]
    at = torch.arange(-3, 4)
    disk = ((at[:, None] ** 2 + at**2) <= radius**2).float()
    taps = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0]) ** 2) / (2 * softening**2))
    soft = torch.outer(taps, taps) / taps.sum() ** 2
    kernel = F.conv2d((disk / disk.sum())[None, None], soft[None, None], padding=1)
    return F.conv2d(F.pad(x.flatten(0, 1)[:, None], [3] * 4, mode="reflect"), kernel).view(x.shape)


def glass_blur(x: Tensor, level: int, rng: Rng) -> Tensor:
    sigma, times = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[level]
    x, rows, (h, w) = (_blur(x, sigma) * 255).floor() / 255, torch.arange(len(x)), x.shape[2:]
    for time in range(times):
        steps = rng.fold(time).uniform(x.new_empty(len(x), 2, h, w)) < 0.5  # one pixel back, or none
        for i in range(h - 1, 1, -1):
            for j in range(w - 1, 1, -1):
                back = steps[:, :, i, j].long()
                x[:, :, i, j] = x[rows, :, i - back[:, 0], j - back[:, 1]]
    return _blur(x, sigma)


def motion_blur(x: Tensor, level: int, rng: Rng) -> Tensor:
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[level]
    return _smear(x, radius, sigma, 90 * rng.uniform(x.new_empty(len(x))) - 45)


def zoom_blur(x: Tensor, level: int, rng: Rng) -> Tensor:
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[level], 0.01)  # as published, with rounding and all
    return (x + sum(_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def snow(x: Tensor, level: int, rng: Rng) -> Tensor:
    mean, spread, factor, least, radius, sigma, keep = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[level]
    flakes = _zoom(mean + spread * rng.fold("flakes").normal(x[:, :1]), factor)
    flakes = torch.where(flakes < least, 0, flakes.clamp(0, 1))
    flakes = _smear(flakes, radius, sigma, 90 * rng.fold("wind").uniform(x.new_empty(len(x))) - 135)
    white = torch.maximum(x, 1.5 * _grey(x) + 0.5)
    return keep * x + (1 - keep) * white + flakes + flakes.flip(2, 3)


def frost(x: Tensor, level: int, rng: Rng) -> Tensor:
    keep, ice = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[level]
    return keep * x + ice * _plasma(x, 1.75, rng)


def fog(x: Tensor, level: int, rng: Rng) -> Tensor:
    thick, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[level]
    brightest = x.amax(dim=(1, 2, 3), keepdim=True)
    return (x + thick * _plasma(x, decay, rng)) * brightest / (brightest + thick)


def brightness(x: Tensor, level: int, rng: Rng) -> Tensor:
    value = x.amax(dim=1, keepdim=True)  # of HSV
    brighter = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[level]).clamp(max=1)
    return torch.where(value > 0, x * brighter / value.clamp_min(1e-12), brighter)


def contrast(x: Tensor, level: int, rng: Rng) -> Tensor:
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[level] + mean


def elastic_transform(x: Tensor, level: int, rng: Rng) -> Tensor:
    push, smooth, corner = 32 * np.array(
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)][level]
    )
    h, w = x.shape[2:]
    middle, reach = torch.tensor([w // 2, h // 2]), min(h, w) // 3
    corners = middle + reach * torch.tensor([[1, 1], [1, -1], [-1, -1]])
    ones, n = torch.ones(len(x), 3, 1), len(x)
    moved = corners + corner * (2 * rng.fold("corners").uniform(torch.empty(n, 3, 2)) - 1)
    back = torch.linalg.solve(torch.cat([moved, ones], dim=2), corners.float().expand(n, 3, 2))  # [x, y, 1] → source
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    here = torch.stack([columns, rows, torch.ones_like(rows)], dim=2).float()
    x = _sample(x, here.expand(n, h, w, 3) @ back[:, None], corners=True)
    shift = 2 * rng.fold("push").uniform(x.new_empty(n, h, w, 2)) - 1
    if push:  # at severity 1 nothing is pushed
        blurred = gaussian_filter(shift.numpy(), (0, smooth, smooth, 0), mode="reflect", truncate=3)
        x = _sample(x, here[:, :, :2] + push * torch.from_numpy(blurred), corners=False)
    return x


def pixelate(x: Tensor, level: int, rng: Rng) -> Tensor:
    share, (h, w) = (0.95, 0.9, 0.85, 0.75, 0.65)[level], x.shape[2:]

    def shrink(image: Image.Image) -> Image.Image:
        return image.resize((int(w * share), int(h * share)), Image.Resampling.BOX).resize((w, h), Image.Resampling.BOX)

    return _pictures(x, shrink)


def jpeg_compression(x: Tensor, level: int, rng: Rng) -> Tensor:
    def squeeze(image: Image.Image) -> Image.Image:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=(80, 65, 58, 50, 40)[level])
        return Image.open(content, formats=["JPEG"])

    return _pictures(x, squeeze)


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost),
        *(fog, brightness, contrast, elastic_transform, pixelate, jpeg_compression),
    )
}


def _blur(x: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def _grey(x: Tensor) -> Tensor:
    """Luma [n, 1, h, w] after ITU-R 601."""
    if x.shape[1] == 1:
        return x
    return (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)


def _zoom(x: Tensor, factor: float) -> Tensor:
    """The middle of the images, enlarged to their size by linear interpolation."""
    h, w = x.shape[2:]
    ch, cw = int(np.ceil(h / factor)), int(np.ceil(w / factor))
    top, left = (h - ch) // 2, (w - cw) // 2
    large = zoom(x[:, :, top : top + ch, left : left + cw].numpy(), (1, 1, factor, factor), order=1)
    top, left = (large.shape[2] - h) // 2, (large.shape[3] - w) // 2
    return torch.from_numpy(large)[:, :, top : top + h, left : left + w]


def _smear(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """ImageMagick's motion blur: half a Gaussian along a direction, pixels of the edge repeated."""
    n, _, h, w = x.shape
    along = torch.arange(2 * radius + 1)
    weights = torch.exp(-(along**2) / (2 * sigma**2))
    angle = torch.deg2rad(degrees)[:, None]
    right, down = (torch.ceil(along * f(angle) - 0.5).long() for f in (torch.cos, torch.sin))
    rows, columns, batch = torch.arange(h)[:, None], torch.arange(w), torch.arange(n)[:, None, None]
    out = torch.zeros_like(x)
    for k, weight in enumerate(weights / weights.sum()):
        i = (rows + down[:, k, None, None]).clamp(0, h - 1)
        j = (columns + right[:, k, None, None]).clamp(0, w - 1)
        out += weight * x[batch, :, i, j].permute(0, 3, 1, 2)
    return out


def _plasma(x: Tensor, decay: float, rng: Rng) -> Tensor:
    """Heights [n, 1, h, w] in [0, 1] by the diamond-square algorithm on a torus."""
    side = 1 << (max(x.shape[2:]) - 1).bit_length()
    heights, step, wobble = torch.zeros(len(x), side, side), side, 100.0
    while step > 1:
        half, noise = step // 2, rng.fold("plasma", step)

        def around(total: Tensor, part: str, wobble: float = wobble, noise: Rng = noise) -> Tensor:
            return total / 4 + wobble**2 * (2 * noise.fold(part).uniform(total) - 1)

        corners = heights[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = around(total + total.roll(-1, 2), "middles")
        middles, corners = heights[:, half::step, half::step], heights[:, ::step, ::step]
        across = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        heights[:, ::step, half::step] = around(across, "across")
        down = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        heights[:, half::step, ::step] = around(down, "down")
        step, wobble = half, wobble / decay
    heights -= heights.amin(dim=(1, 2), keepdim=True)
    heights /= heights.amax(dim=(1, 2), keepdim=True)
    return heights[:, None, : x.shape[2], : x.shape[3]].to(x)


def _sample(x: Tensor, places: Tensor, corners: bool) -> Tensor:
    """Bilinear values at ``places`` [n, h, w, (x, y)], mirrored at edge pixels' centres (corners) or outer sides."""
    size = torch.tensor([x.shape[3], x.shape[2]])
    unit = 2 * places / (size - 1) - 1 if corners else (2 * places + 1) / size - 1
    return F.grid_sample(x, unit.float(), padding_mode="reflection", align_corners=corners)


def _pictures(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """A change of 8-bit pictures, one by one."""
    out = []
    for image in (x * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        out.append(np.asarray(change(picture)).reshape(image.shape))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).to(x) / 255
