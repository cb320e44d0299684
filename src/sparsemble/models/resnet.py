"""Residual networks (He et al. 2016)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import Tensor, nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.types import Images, Logits
from sparsemble.models.architecture import Architecture, architectures

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks in each stage, by depth; from 50 on they are bottlenecks."""
STEMS = {"cifar": (3, 1), "half": (4, 2), "imagenet": (7, 2)}
"""Kernel and stride of the first convolution."""

Block = Callable[[int, int, int], nn.Module]
"""From channels in, channels out and stride to a module."""


@final
@architectures.register("resnet")
@dataclass(frozen=True, kw_only=True)
class ResNet(Architecture):
    """Four stages of residual blocks; each after the first halves the image and doubles the channels.

    Source: He et al. 2016, table 1. Departs from it: a shape change takes a 1x1 convolution with BatchNorm in every
    depth (their option B), and bottlenecks halve the image in their 3x3 convolution.
    """

    is_plain: ClassVar[bool] = True
    depth: Literal[18, 34, 50, 101] = 18
    """Layers with weights; 50 and 101 use bottleneck blocks."""
    width: int = 64
    """Channels of the stem and, in 18 and 34, of the first stage (bottlenecks give four times as many), >= 1."""
    stem: Literal["cifar", "half", "imagenet"] = "cifar"
    """cifar: 3x3 convolution at full size; half: 4x4, which halves the image; imagenet: 7x7 and max pooling, which each
    halve it."""

    def __post_init__(self) -> None:
        check_at_least(1, width=self.width)

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Make the network."""
        return ResidualNet(self, in_channels, classes)


for _depth in BLOCKS:
    architectures.alias(f"resnet{_depth}", "resnet", depth=_depth)


@final
class ResidualNet(nn.Module):
    """The network of `ResNet`."""

    def __init__(self, layout: ResNet, in_channels: int, classes: int) -> None:
        super().__init__()
        width, blocks = layout.width, BLOCKS[layout.depth]
        kernel, stride = STEMS[layout.stem]
        self.conv = nn.Conv2d(in_channels, width, kernel, stride, padding=(kernel - 1) // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stem_pool = nn.MaxPool2d(3, 2, padding=1) if layout.stem == "imagenet" else nn.Identity()
        block, first = (BasicBlock, width) if layout.depth < 50 else (Bottleneck, 4 * width)
        self.stage1 = make_stage(block, width, first, blocks[0], stride=1)
        self.stage2 = make_stage(block, first, 2 * first, blocks[1], stride=2)
        self.stage3 = make_stage(block, 2 * first, 4 * first, blocks[2], stride=2)
        self.stage4 = make_stage(block, 4 * first, 8 * first, blocks[3], stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(8 * first, classes)

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        x = self.stem_pool(self.relu(self.norm(self.conv(x))))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        logits: Logits = self.linear(self.pool(x).flatten(1))
        return logits


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.shortcut = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the block."""
        out = self.relu1(self.norm1(self.conv1(x)))
        out = self.relu2(self.norm2(self.conv2(out)) + self.shortcut(x))
        return out  # type: ignore[no-any-return]


@final
class Bottleneck(nn.Module):
    """A 3x3 convolution on a quarter of the channels, between two 1x1 ones, and a shortcut (figure 5 right)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        inner = channels_out // 4
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, channels_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels_out)
        self.relu3 = nn.ReLU()
        self.shortcut = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the block."""
        out = self.relu1(self.norm1(self.conv1(x)))
        out = self.relu2(self.norm2(self.conv2(out)))
        out = self.relu3(self.norm3(self.conv3(out)) + self.shortcut(x))
        return out  # type: ignore[no-any-return]


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Return the identity, or a 1x1 convolution with BatchNorm where the shape changes."""
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


def make_stage(block: Block, channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    """Return blocks in a row; the first one changes the shape.

    Args:
        block: makes one block from channels in, channels out and stride.
        channels_in: channels of the input, >= 1.
        channels_out: channels of the output, >= 1.
        blocks: number of blocks, >= 1.
        stride: of the first block, >= 1.
    """
    rest = [block(channels_out, channels_out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(block(channels_in, channels_out, stride), *rest)
