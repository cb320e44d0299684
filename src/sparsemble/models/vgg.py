"""Plain convolutional networks (Simonyan and Zisserman 2015)."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.types import Images, Logits
from sparsemble.models.architecture import Architecture, architectures

LAYOUT = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
"""Convolutions of each stage and its channels, in widths."""


@final
@architectures.register("vgg")
@dataclass(frozen=True, kw_only=True)
class VGG(Architecture):
    """Thirteen 3x3 convolutions with BatchNorm in five stages that end in max pooling, then one linear layer: VGG16.

    Source: Simonyan and Zisserman 2015, table 1, column D. Departs from it: BatchNorm after every convolution, and one
    linear layer after global pooling in place of three, as usual for CIFAR.
    """

    is_plain: ClassVar[bool] = True
    smallest: ClassVar[int] = 32

    width: int = 64
    """Channels of the first stage; the last two have eight times as many, >= 1."""

    def __post_init__(self) -> None:
        check_at_least(1, width=self.width)

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Make the network."""
        return VGGNet(in_channels, classes, self.width)


architectures.alias("vgg16", "vgg")


@final
class VGGNet(nn.Module):
    """The network of `VGG`."""

    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        stages = OrderedDict[str, nn.Module]()
        channels = in_channels
        for number, (convolutions, widths) in enumerate(LAYOUT, start=1):
            stages[f"stage{number}"] = _stage(channels, widths * width, convolutions)
            channels = widths * width
        self.stages = nn.Sequential(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        logits: Logits = self.linear(self.pool(self.stages(x)).flatten(1))
        return logits


def _stage(channels_in: int, channels_out: int, convolutions: int) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module]()
    for number in range(1, convolutions + 1):
        # BatchNorm makes the bias needless; published networks and their parameter counts have it.
        layers[f"conv{number}"] = nn.Conv2d(channels_in if number == 1 else channels_out, channels_out, 3, padding=1)
        layers[f"norm{number}"] = nn.BatchNorm2d(channels_out)
        layers[f"relu{number}"] = nn.ReLU()
    layers["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)
