"""Named architectures: images in [0, 1] to logits, normalisation inside."""

from typing import Any

from sparsemble.core.registry import component_names, find_component
from sparsemble.models.architecture import Architecture, Normalised, architectures, build_model

__all__ = ["Architecture", "Normalised", "architectures", "build_model"]

architectures.register_package("sparsemble.models")


def __getattr__(name: str) -> Any:
    """Return an architecture by the name of its class or alias: `ResNet`, `resnet18`."""
    return find_component(name, architectures)


def __dir__() -> list[str]:
    return [*__all__, *component_names(architectures)]
