"""Networks of the package torchvision."""

from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.models.architecture import Architecture, architectures
from sparsemble.models.code import from_package


@final
@architectures.register("torchvision")
@dataclass(frozen=True, kw_only=True)
class Torchvision(Architecture):
    """`torchvision.models.get_model`, for those of its networks that are made of the layers `Architecture` names."""

    model: str
    """Its name in the package, such as resnet18."""
    weights: str = ""
    """Name of the package's own weights, which it downloads, such as DEFAULT; they decide the number of classes."""

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Return the network."""
        if in_channels != 3:
            raise InputError(f"networks of torchvision take 3 channels, the images have {in_channels}")
        settings = {"weights": self.weights} if self.weights else {"num_classes": classes}
        return from_package("torchvision", lambda package: package.models.get_model(self.model, **settings))
