"""Tensor types: `Images` (B, C, H, W) in [0, 1], `Labels` (B), `Logits` (B, K), `MemberLogits` (M, B, K)."""

import zlib
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsemble.core.argument_checks import checked_seed

Images = Float[Tensor, "B C H W"]
"""Batch of images, channels first, float in [0, 1]."""
Labels = Int[Tensor, "B"]
"""Class index of each image."""
Logits = Float[Tensor, "B K"]
"""Unnormalised log-probabilities."""
MemberLogits = Float[Tensor, "M B K"]
"""Logits of every member of an ensemble, in the order in which the members run."""
PerImage = Float[Tensor, "B"]
"""One number for each image."""
Flags = Bool[Tensor, "B"]
"""One boolean for each image."""
Counts = Int[Tensor, "B"]
"""One integer for each image."""

Classifier = Callable[[Tensor], Tensor]
"""From `Images` to `Logits`."""


def draw_seed(seed: int, *labels: str) -> int:
    """Derive a seed from a seed of any size, 0 or more, and labels; different labels give independent seeds."""
    return int(np.random.default_rng([checked_seed(seed), zlib.crc32(" ".join(labels).encode())]).integers(2**62))


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator with this seed; only `pipeline`, `cli`, tests and `evaluation` (one a shard) may call this."""
    number = checked_seed(seed)
    return torch.Generator(device=device).manual_seed(number if number < 2**64 else draw_seed(number))
