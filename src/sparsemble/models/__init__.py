"""Named architectures: images in [0, 1] to logits, normalisation inside."""

from sparsemble.models.architecture import Architecture, Normalised, architectures, build_model

__all__ = ["Architecture", "Normalised", "architectures", "build_model"]

architectures.walk("sparsemble.models")
