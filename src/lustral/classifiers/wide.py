"""Wide residual networks with pre-activation (Zagoruyko and Komodakis, BMVC 2016)."""

from collections import OrderedDict

from torch import Tensor, nn

from ..core import outputs
from ..core.errors import UserError
from .resnet import Normalise, activation_named


class Block(nn.Module):
    """Norm–activation–conv twice, and a skip; where the width changes the skip is a 1×1 conv of the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        self.activation = activation_named(activation)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.bn1(x))
        skip = x if self.convShortcut is None else self.convShortcut(h)
        return skip + self.conv2(self.activation(self.bn2(self.conv1(h))))


class WideResNet(nn.Module):
    """``classifier(x [b, channels, h, w] in [0, 1]) -> logits [b, classes]``; the last maps are averaged whole.

    The state dict has the names that TRADES and most of its successors use (``block1.layer.0.convShortcut.weight``),
    so their checkpoints load. Those mostly take images as they are, ``mean=(0, 0, 0)`` and ``std=(1, 1, 1)``. Drop
    ``sub_block1``, which some hold and none uses.
    """

    def __init__(
        self,
        depth: int = 28,
        widen: int = 10,
        classes: int = 10,
        channels: int = 3,
        activation: str = "relu",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise UserError(f"A WideResNet's depth is 6n + 4 (10, 16, 22, 28, 34, …), not {depth}.")
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.normalise = Normalise(channels, mean, std)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.block1, self.block2, self.block3 = (
            _group(widths[i], widths[i + 1], (depth - 4) // 6, 2 if i else 1, activation) for i in range(3)
        )
        self.bn1, self.activation = nn.BatchNorm2d(widths[3]), activation_named(activation)
        self.fc = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def features(self, x: Tensor) -> Tensor:
        """The representation [b, 64·widen] that the last layer sees."""
        h = self.block3(self.block2(self.block1(self.conv1(self.normalise(x)))))
        return self.activation(self.bn1(h)).mean(dim=(2, 3))

    def head(self, features: Tensor) -> Tensor:
        """Logits of a representation."""
        return self.fc(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(outputs.taken(self, x)))


def _group(inputs: int, outputs: int, blocks: int, stride: int, activation: str) -> nn.Sequential:
    """Blocks of one width, the first of which has the stride; under ``layer`` for its name's sake."""
    rest = (Block(outputs, outputs, 1, activation) for _ in range(blocks - 1))
    return nn.Sequential(OrderedDict(layer=nn.Sequential(Block(inputs, outputs, stride, activation), *rest)))
