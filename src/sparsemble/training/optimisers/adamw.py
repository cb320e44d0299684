"""Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from sparsemble.training.optimiser import Optimiser, optimisers, trained
from sparsemble.training.optimisers.adam import check_moments


@final
@optimisers.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(Optimiser):
    """Adam whose weight decay shrinks the weights directly."""

    betas: tuple[float, ...] = (0.9, 0.999)
    """Of the running mean and of the running square, each in [0, 1)."""
    weight_decay: float = 0.01
    """Share of every trained tensor taken off at each step, times the rate, >= 0."""

    def __post_init__(self) -> None:
        check_moments(self.betas, self.weight_decay)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser."""
        mean, square = self.betas
        return torch.optim.AdamW(trained(parameters), betas=(mean, square), weight_decay=self.weight_decay)
