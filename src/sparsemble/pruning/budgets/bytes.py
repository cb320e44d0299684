"""Bytes of a packed file."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sparsemble.core.argument_checks import check_interval
from sparsemble.pruning.budget import Budget, budgets


@final
@budgets.register("bytes")
@dataclass(frozen=True, kw_only=True)
class Bytes(Budget):
    """Values of `value_bits` and the entropy of their positions, n H(nonzeros / n) bits: a lower bound for any code."""

    value_bits: int = 16
    """Bits of one weight, 1 to 32."""

    def __post_init__(self) -> None:
        check_interval("[1, 32]", value_bits=self.value_bits)

    def cost(self, nonzeros: Tensor, sizes: Tensor, positions: Tensor) -> Tensor:
        """Return the bytes of values and positions."""
        fraction = nonzeros / sizes
        entropy = -(torch.xlogy(fraction, fraction) + torch.xlogy(1 - fraction, 1 - fraction)) / torch.log(
            torch.tensor(2.0)
        )
        return (nonzeros * self.value_bits + sizes * entropy) / 8
