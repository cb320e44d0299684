"""Pre-activation residual networks (He et al. 2016b), as published robust CIFAR networks use them."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.types import Images, Logits
from sparsemble.models.architecture import Architecture, architectures
from sparsemble.models.resnet import BLOCKS, make_stage
from sparsemble.models.wide_resnet import PreActivationBlock


@final
@architectures.register("preact_resnet")
@dataclass(frozen=True, kw_only=True)
class PreActResNet(Architecture):
    """Four stages of pre-activation blocks behind one 3x3 convolution; each after the first halves the image.

    Source: He et al. 2016b, figure 4e, with the layout of their ResNet-18 and ResNet-34.
    """

    is_plain: ClassVar[bool] = True
    depth: Literal[18, 34] = 18
    """Layers with weights."""
    width: int = 64
    """Channels of the first stage, >= 1."""
    last_norm: bool = True
    """BatchNorm and ReLU before pooling; some published networks lack them."""

    def __post_init__(self) -> None:
        check_at_least(1, width=self.width)

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Make the network."""
        return PreActivationNet(self, in_channels, classes)


architectures.alias("preact_resnet18", "preact_resnet", depth=18)


@final
class PreActivationNet(nn.Module):
    """The network of `PreActResNet`."""

    def __init__(self, layout: PreActResNet, in_channels: int, classes: int) -> None:
        super().__init__()
        width, blocks = layout.width, BLOCKS[layout.depth]
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.stage1 = make_stage(PreActivationBlock, width, width, blocks[0], stride=1)
        self.stage2 = make_stage(PreActivationBlock, width, 2 * width, blocks[1], stride=2)
        self.stage3 = make_stage(PreActivationBlock, 2 * width, 4 * width, blocks[2], stride=2)
        self.stage4 = make_stage(PreActivationBlock, 4 * width, 8 * width, blocks[3], stride=2)
        self.norm = nn.BatchNorm2d(8 * width) if layout.last_norm else nn.Identity()
        self.relu = nn.ReLU() if layout.last_norm else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.conv(x)))))
        logits: Logits = self.linear(self.pool(self.relu(self.norm(x))).flatten(1))
        return logits
