"""Bytes of a packed file."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.pruning.budget import Budget, budgets


@final
@budgets.register("bytes")
@dataclass(frozen=True, kw_only=True)
class Bytes(Budget):
    """Values of `value_bits` and the entropy of their positions, n H(kept / n) bits: a lower bound for any code."""

    value_bits: int = 16
    """Bits of one weight, 1 to 32."""

    def __post_init__(self) -> None:
        if not 1 <= self.value_bits <= 32:
            raise InputError(f"value_bits = {self.value_bits} must be between 1 and 32")

    def cost(self, kept: Tensor, sizes: Tensor, positions: Tensor) -> Tensor:
        """Return the bytes of values and positions."""
        share = kept / sizes
        entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) / torch.log(torch.tensor(2.0))
        return (kept * self.value_bits + sizes * entropy) / 8
