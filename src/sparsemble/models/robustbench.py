"""Trained networks of RobustBench."""

from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.models.architecture import Architecture, architectures
from sparsemble.models.code import from_package


@final
@architectures.register("robustbench")
@dataclass(frozen=True, kw_only=True)
class RobustBench(Architecture):
    """`robustbench.load_model`, for those of its networks that are made of the layers that `Architecture` names."""

    model: str
    """Its name in the package, such as Standard."""
    dataset: str = "cifar10"
    """cifar10, cifar100 or imagenet."""
    threat_model: str = "Linf"
    """Linf or L2."""
    normalises: bool = True  # type: ignore[misc] # a setting here, fixed elsewhere
    """Whether the network normalises its images itself, as theirs do."""

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Return the network, which the package downloads."""
        settings = {"model_name": self.model, "dataset": self.dataset, "threat_model": self.threat_model}
        return from_package("robustbench", lambda package: package.load_model(**settings))
