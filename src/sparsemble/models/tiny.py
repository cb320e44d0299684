"""A small residual network for images of about 8 x 8 pixels."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.types import Images, Logits
from sparsemble.models.architecture import Architecture, architectures
from sparsemble.models.resnet import BasicBlock


@final
@architectures.register("tiny")
@dataclass(frozen=True, kw_only=True)
class Tiny(Architecture):
    """A 3x3 stem, then two basic residual blocks that each halve the image and double the channels."""

    is_plain: ClassVar[bool] = True
    width: int = 16
    """Channels of the stem; the blocks have twice and four times as many."""

    def __post_init__(self) -> None:
        check_at_least(1, width=self.width)

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Make the network."""
        return TinyNet(in_channels, classes, self.width)


@final
class TinyNet(nn.Module):
    """The network of `Tiny`."""

    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.block1 = BasicBlock(width, 2 * width, stride=2)
        self.block2 = BasicBlock(2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        x = self.relu(self.norm(self.conv(x)))
        x = self.pool(self.block2(self.block1(x))).flatten(1)
        logits: Logits = self.linear(x)
        return logits
