"""A residual classifier that a CPU can train on CIFAR-10 (docs/results/cifar10-training.md).

After Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds" (2024), whose network it makes residual: a fixed whitening layer
and three groups that pool at once, so that it learns from fewer images and costs a third of ResNet-9 for each.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import outputs
from .resnet import Residual, activation_named, channels_last, conv


class Whitening(nn.Module):
    """Decorrelates patches of 2×2 pixels: filters that are fitted to images and not trained, and a trained bias.

    Every direction is there with both signs, for the activation that follows.
    """

    EPS = 5e-4
    """Added to the variances (as in Jordan's airbench94.py): directions of less are left small."""

    def __init__(self, channels: int):
        super().__init__()
        patch = 4 * channels
        self.register_buffer("filters", torch.eye(patch).view(patch, channels, 2, 2))
        self.bias = nn.Parameter(torch.zeros(2 * patch))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Takes the principal directions of the patches of images x [n, channels, h, w], each scaled to variance 1."""
        count, total, squares = 0, 0, 0
        for part in x.split(100):  # a float64 for every pixel of every patch is 17 times the images
            patches = F.unfold(part.double(), 2).transpose(1, 2).flatten(0, 1)
            count, total, squares = count + len(patches), total + patches.sum(0), squares + patches.T @ patches
        mean = total / count
        variances, directions = torch.linalg.eigh((squares - count * mean.outer(mean)) / (count - 1))
        filters = (directions / (variances + self.EPS).sqrt()).T
        middle = filters @ mean
        self.filters.copy_(filters.view_as(self.filters))
        self.bias.copy_(torch.cat([-middle, middle]))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, torch.cat([self.filters, -self.filters]), self.bias)


class WhitenedResNet(nn.Module):
    """``classifier(x [b, channels, h, w] in [0, 1]) -> logits [b, classes]``, h and w at least 9.

    The groups are 1, 4 and 4 times ``width`` wide; 64 gives about 2 million parameters. Call ``fit`` with training
    images before the first step. With ``mirror`` logits are, outside training, the mean over an image and its mirror
    image: twice the cost, and exactly indifferent to mirroring.
    """

    def __init__(
        self, channels: int = 3, width: int = 64, classes: int = 10, activation: str = "gelu", mirror: bool = False
    ):
        super().__init__()
        self.mirror = mirror
        widths = 8 * channels, width, 4 * width, 4 * width
        groups = [
            nn.Sequential(conv(inputs, outputs, activation, pool=2), Residual(outputs, activation, convolutions=1))
            for inputs, outputs in pairwise(widths)
        ]
        self.first = Whitening(channels)
        self.body = nn.Sequential(activation_named(activation), *groups, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.last = nn.Linear(widths[-1], classes, bias=False)

    def fit(self, x: Tensor) -> None:
        """Fits the first layer to images x [n, channels, h, w] in [0, 1]."""
        self.first.fit(x)

    def features(self, x: Tensor) -> Tensor:
        """The representation [b, 4·width] that the last layer sees."""
        x = channels_last(x)
        features = self.body(self.first(x))
        if self.mirror and not self.training:
            features = (features + self.body(self.first(x.flip(3)))) / 2
        return features

    def head(self, features: Tensor) -> Tensor:
        """Logits of a representation."""
        return 0.125 * self.last(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(outputs.taken(self, x)))
