"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Logits
from sparsemble.models.architecture import Architecture, architectures
from sparsemble.models.resnet import make_stage


@final
@architectures.register("wide_resnet")
@dataclass(frozen=True, kw_only=True)
class WideResNet(Architecture):
    """Three stages of pre-activation residual blocks; each after the first halves the image and doubles the channels.

    Source: Zagoruyko and Komodakis 2016, table 1, block B(3,3) without dropout.
    """

    is_plain: ClassVar[bool] = True
    depth: int = 28
    """Layers with weights, 6 n + 4 for n blocks a stage: 10, 16, 22, 28, 34, ..."""
    widen: int = 10
    """Channels of the first stage, in widths, >= 1."""
    width: int = 16
    """Channels of the stem, >= 1."""

    def __post_init__(self) -> None:
        if self.depth < 10 or self.depth % 6 != 4:
            raise InputError(f"depth must be 6 n + 4, as in 10, 16, 22, 28 or 34, got {self.depth}")
        check_at_least(1, widen=self.widen, width=self.width)

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Make the network."""
        return WideResidualNet(self, in_channels, classes)


architectures.alias("wrn28_10", "wide_resnet", depth=28, widen=10)


@final
class WideResidualNet(nn.Module):
    """The network of `WideResNet`."""

    def __init__(self, layout: WideResNet, in_channels: int, classes: int) -> None:
        super().__init__()
        blocks, first = (layout.depth - 4) // 6, layout.widen * layout.width
        self.conv = nn.Conv2d(in_channels, layout.width, 3, padding=1, bias=False)
        self.stage1 = make_stage(PreActivationBlock, layout.width, first, blocks, stride=1)
        self.stage2 = make_stage(PreActivationBlock, first, 2 * first, blocks, stride=2)
        self.stage3 = make_stage(PreActivationBlock, 2 * first, 4 * first, blocks, stride=2)
        self.norm = nn.BatchNorm2d(4 * first)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * first, classes)

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        x = self.stage3(self.stage2(self.stage1(self.conv(x))))
        x = self.pool(self.relu(self.norm(x)))
        logits: Logits = self.linear(x.flatten(1))
        return logits


@final
class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions (He et al. 2016b, figure 4e).

    Where the shape changes, the shortcut is a 1x1 convolution of what the first convolution sees; else the plain input.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = None if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the block."""
        active = self.relu1(self.norm1(x))
        straight = x if self.shortcut is None else self.shortcut(active)
        out = self.conv2(self.relu2(self.norm2(self.conv1(active)))) + straight
        return out  # type: ignore[no-any-return]
