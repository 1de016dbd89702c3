"""A small residual classifier that trains in minutes: the ResNet-9 of the DAWNBench family.

After David Page, "How to train your ResNet" (Myrtle, 2018–2019). Max-pooling stands before normalisation and
activation, as in his part 8: a quarter of their work, and for activations that only rise (relu) the same maximum
wherever the scale is positive.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..core import outputs
from ..core.errors import UserError, unknown

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "celu": partial(nn.CELU, 0.3),
}


def activation_named(name: str) -> nn.Module:
    """A new activation; ``celu`` has Page's α = 0.3."""
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def channels_last(x: Tensor) -> Tensor:
    """The same images in the layout in which plain convolutional networks are fastest, most of all in bfloat16."""
    return x.contiguous(memory_format=torch.channels_last)


class Normalise(nn.Module):
    """(x − mean)/std per channel, by default 0.5 and 0.25; the constants are arguments and not in the state dict."""

    def __init__(self, channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__()
        for name, default, given in (("mean", 0.5, mean), ("std", 0.25, std)):
            values = [default] * channels if given is None else list(given)
            if len(values) != channels or (name == "std" and min(values) <= 0):
                raise UserError(f"{name} must be {channels} numbers, one for each channel, and std above zero.")
            self.register_buffer(name, torch.tensor(values).view(1, channels, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.mean.shape[1]:  # one channel would be spread over all of them in silence
            raise UserError(outputs.other_channels("The classifier", self.mean.shape[1], x.shape[1]))
        return (x - self.mean) / self.std


class Residual(nn.Module):
    """x + convolutions of x."""

    def __init__(self, channels: int, activation: str, convolutions: int = 2):
        super().__init__()
        self.body = nn.Sequential(*(conv(channels, channels, activation) for _ in range(convolutions)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def conv(inputs: int, outputs: int, activation: str, pool: int = 1) -> nn.Sequential:
    """3×3 convolution, max-pooling, normalisation, activation."""
    parts = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    parts += [nn.MaxPool2d(pool)] if pool > 1 else []
    return nn.Sequential(*parts, nn.BatchNorm2d(outputs), activation_named(activation))


class ResNet(nn.Module):
    """``classifier(x [b, channels, h, w] in [0, 1]) -> logits [b, classes]``, h and w at least 8.

    Widths are 1, 2, 4 and 8 times ``width``; 64 gives the published network of 6.57 million parameters.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        classes: int = 10,
        activation: str = "relu",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        self.normalise = Normalise(channels, mean, std)
        self.body = nn.Sequential(
            conv(channels, width, activation),
            conv(width, 2 * width, activation, pool=2),
            Residual(2 * width, activation),
            conv(2 * width, 4 * width, activation, pool=2),
            conv(4 * width, 8 * width, activation, pool=2),
            Residual(8 * width, activation),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.last = nn.Linear(8 * width, classes, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """The representation [b, 8·width] that the last layer sees."""
        return self.body(self.normalise(channels_last(x)))

    def head(self, features: Tensor) -> Tensor:
        """Logits of a representation."""
        return 0.125 * self.last(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(outputs.taken(self, x)))
