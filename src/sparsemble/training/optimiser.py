"""The interface of optimisers."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import nn

from sparsemble.core.registry import Component, Registry


class Optimiser(Component):
    """Settings of an optimiser; the learning rate comes from the schedule."""

    @abstractmethod
    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of the trainable parameters; the loop sets its learning rate before every step."""


optimisers: Registry[Optimiser] = Registry("optimiser", Optimiser)


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters with `requires_grad`."""
    return [parameter for parameter in parameters if parameter.requires_grad]
