"""Wide residual networks (Zagoruyko & Komodakis 2016)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Logits
from sparsemble.models.architecture import Architecture, architectures


@final
@architectures.register("wide_resnet")
@dataclass(frozen=True, kw_only=True)
class WideResNet(Architecture):
    """Pre-activation residual network of three stages, for small images."""

    depth: int = 28
    """Layers, 6 n + 4."""
    widen: int = 10
    """Factor on the channels of all stages."""
    width: int = 16
    """Channels of the stem; the stages have widen times 1, 2 and 4 as many."""

    def __post_init__(self) -> None:
        if self.depth < 10 or self.depth % 6 != 4:
            raise InputError(f"depth = {self.depth} must be 6 n + 4 with n = 1 or more: 10, 16, 22, 28, 34, ...")
        if self.width < 1 or self.widen < 1:
            raise InputError(f"width = {self.width} and widen = {self.widen} must be 1 or more")

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Make the network."""
        return WideResNetNet(self, in_channels, classes)


@final
class WideResNetNet(nn.Module):
    """The network of `WideResNet`."""

    def __init__(self, layout: WideResNet, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, layout.width, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        channels = layout.width
        for stage in range(3):
            width = layout.width * layout.widen * 2**stage
            for number in range((layout.depth - 4) // 6):
                blocks.append(PreActivationBlock(channels, width, 2 if stage and number == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        x = self.relu(self.norm(self.blocks(self.conv(x))))
        logits: Logits = self.linear(self.pool(x).flatten(1))
        return logits


@final
class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions; a changed shape starts from the activated input."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride != 1 or channels_in != width
        self.shortcut = nn.Conv2d(channels_in, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the block."""
        active = self.relu1(self.norm1(x))
        out: Tensor = self.conv2(self.relu2(self.norm2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


architectures.alias("wrn28_10", "wide_resnet")
