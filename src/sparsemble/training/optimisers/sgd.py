"""Stochastic gradient descent with momentum (Sutskever et al. 2013)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from sparsemble.core.argument_checks import check_at_least, check_interval
from sparsemble.core.errors import InputError
from sparsemble.training.optimiser import Optimiser, optimisers, trainable


@final
@optimisers.register("sgd")
@dataclass(frozen=True, kw_only=True)
class SGD(Optimiser):
    """SGD with momentum: v <- momentum v + g, w <- w - learning_rate v."""

    momentum: float = 0.9
    """Factor on the velocity at each step, in [0, 1)."""
    nesterov: bool = False
    """Use Nesterov momentum: the step is along g + momentum v."""
    weight_decay: float = 5e-4
    """L2 penalty on every trained tensor, added to the gradient, >= 0."""

    def __post_init__(self) -> None:
        check_interval("[0, 1)", momentum=self.momentum)
        check_at_least(0, weight_decay=self.weight_decay)
        if self.nesterov and not self.momentum:
            raise InputError("nesterov = true needs a momentum above 0")

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.SGD(
            trainable(parameters), momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay
        )
