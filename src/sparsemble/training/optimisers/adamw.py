"""Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from sparsemble.training.optimiser import Optimiser, optimisers, trainable
from sparsemble.training.optimisers.adam import check_moments


@final
@optimisers.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(Optimiser):
    """Adam with decoupled weight decay: the weights are multiplied by 1 - learning_rate weight_decay.

    Source: Loshchilov and Hutter 2019, algorithm 2.
    """

    betas: tuple[float, ...] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient, each in [0, 1)."""
    weight_decay: float = 0.01
    """Decay of every trained tensor at each step, times the learning rate, >= 0."""

    def __post_init__(self) -> None:
        check_moments(self.betas, self.weight_decay)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser."""
        mean, square = self.betas
        return torch.optim.AdamW(trainable(parameters), betas=(mean, square), weight_decay=self.weight_decay)
