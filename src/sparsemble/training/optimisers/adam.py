"""Adam (Kingma & Ba 2015)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.errors import InputError
from sparsemble.training.optimiser import Optimiser, optimisers, trainable


@final
@optimisers.register("adam")
@dataclass(frozen=True, kw_only=True)
class Adam(Optimiser):
    """Adam: steps scaled per weight by running moments of the gradient.

    Source: Kingma and Ba 2015, algorithm 1.
    """

    betas: tuple[float, ...] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient, each in [0, 1)."""
    weight_decay: float = 0.0
    """L2 penalty on every trained tensor, added to the gradient, >= 0."""

    def __post_init__(self) -> None:
        check_moments(self.betas, self.weight_decay)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser."""
        mean, square = self.betas
        return torch.optim.Adam(trainable(parameters), betas=(mean, square), weight_decay=self.weight_decay)


def check_moments(betas: tuple[float, ...], weight_decay: float) -> None:
    """Check the settings of Adam and AdamW."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"betas = {list(betas)} must be two numbers in [0, 1), such as [0.9, 0.999]")
    check_at_least(0, weight_decay=weight_decay)
