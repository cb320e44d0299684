"""Residual networks (He et al. 2016)."""

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Logits
from sparsemble.models.architecture import Architecture, architectures

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_FROM = 50


@final
@architectures.register("resnet")
@dataclass(frozen=True, kw_only=True)
class ResNet(Architecture):
    """ResNet-18, 34, 50 or 101, for small images (3x3 stem) or large ones (7x7 stem and pooling).

    Source: He et al. 2016, table 1; bottlenecks stride in their 3x3 convolution, as is usual since.
    """

    depth: Literal[18, 34, 50, 101] = 18
    """Layers, as in the name."""
    width: int = 64
    """Channels of the first stage."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """cifar keeps the image's size, imagenet divides it by 4."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"width = {self.width} must be 1 or more")

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Make the network."""
        return ResNetNet(self, in_channels, classes)


@final
class ResNetNet(nn.Module):
    """The network of `ResNet`."""

    def __init__(self, layout: ResNet, in_channels: int, classes: int) -> None:
        super().__init__()
        large = layout.stem == "imagenet"
        size, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        self.conv = nn.Conv2d(in_channels, layout.width, size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(layout.width)
        self.relu = nn.ReLU()
        self.reduce = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        block = Bottleneck if layout.depth >= BOTTLENECK_FROM else BasicBlock
        blocks: list[nn.Module] = []
        channels = layout.width
        for stage, count in enumerate(STAGES[layout.depth]):
            for number in range(count):
                width = layout.width * 2**stage
                blocks.append(block(channels, width, 2 if stage and number == 0 else 1))
                channels = width * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        x = self.reduce(self.relu(self.norm(self.conv(x))))
        logits: Logits = self.linear(self.pool(self.blocks(x)).flatten(1))
        return logits


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.shortcut = shortcut(channels_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the block."""
        out = self.relu1(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out)) + self.shortcut(x)
        features: Tensor = self.relu2(out)
        return features


@final
class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2016, figure 5 right)."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, self.expansion * width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(self.expansion * width)
        self.relu3 = nn.ReLU()
        self.shortcut = shortcut(channels_in, self.expansion * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the block."""
        out = self.relu1(self.norm1(self.conv1(x)))
        out = self.relu2(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out)) + self.shortcut(x)
        features: Tensor = self.relu3(out)
        return features


def shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Return the identity, or a 1x1 convolution with BatchNorm where the shape changes."""
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


for _depth in STAGES:
    architectures.alias(f"resnet{_depth}", "resnet", depth=_depth)
