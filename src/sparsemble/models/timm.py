"""Networks of the package timm."""

from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.models.architecture import Architecture, architectures
from sparsemble.models.code import from_package


@final
@architectures.register("timm")
@dataclass(frozen=True, kw_only=True)
class Timm(Architecture):
    """`timm.create_model`, for those of its networks that are made of the layers that `Architecture` names."""

    model: str
    """Its name in the package, such as resnet18."""
    pretrained: bool = False
    """With the package's own weights, which it downloads."""

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Return the network."""
        settings = {"pretrained": self.pretrained, "in_chans": in_channels, "num_classes": classes}
        return from_package("timm", lambda timm: timm.create_model(self.model, **settings))
