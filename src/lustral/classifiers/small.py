"""A small convolutional classifier for small images."""

from torch import Tensor, nn

from ..core import outputs


class SmallCNN(nn.Module):
    """``classifier(x [b, channels, h, w] in [0, 1]) -> logits [b, classes]``; maps to [-1, 1] inside."""

    def __init__(self, channels: int = 1, width: int = 32, classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, classes),
        )

    def features(self, x: Tensor) -> Tensor:
        """The representation [b, 8·width] that the last layer sees."""
        return self.body[:-1](2 * x - 1)

    def head(self, features: Tensor) -> Tensor:
        """Logits of a representation."""
        return self.body[-1](features)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(outputs.taken(self, x)))
