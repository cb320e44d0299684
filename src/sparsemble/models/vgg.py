"""VGG-16 with BatchNorm and one linear layer (Simonyan & Zisserman 2015, configuration D)."""

from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Logits
from sparsemble.models.architecture import Architecture, architectures

STAGES = (2, 2, 3, 3, 3)


@final
@architectures.register("vgg")
@dataclass(frozen=True, kw_only=True)
class VGG(Architecture):
    """Thirteen 3x3 convolutions with BatchNorm in five stages, pooling between them, one linear layer.

    The paper's 14.7 million parameters are this layout (method.md 2.8); HARP's own VGG-16 has three linear layers.
    """

    width: int = 64
    """Channels of the first stage; later ones have 2, 4, 8 and 8 times as many."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"width = {self.width} must be 1 or more")

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Make the network."""
        return VGGNet(self, in_channels, classes)


@final
class VGGNet(nn.Module):
    """The network of `VGG`."""

    def __init__(self, layout: VGG, in_channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, count in enumerate(STAGES):
            width = layout.width * min(2**stage, 8)
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2) if stage < len(STAGES) - 1 else nn.AdaptiveAvgPool2d(1))
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        logits: Logits = self.linear(self.layers(x).flatten(1))
        return logits


architectures.alias("vgg16", "vgg")
