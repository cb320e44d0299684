"""What turns gradients into steps."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import nn

from sparsemble.core.registry import Component, Registry


class Optimiser(Component):
    """Settings of a step rule; the rate comes from the schedule."""

    @abstractmethod
    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser of the parameters that want a gradient; the loop sets its rate before every step."""


optimisers: Registry[Optimiser] = Registry("optimiser", Optimiser)


def trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that want a gradient."""
    return [parameter for parameter in parameters if parameter.requires_grad]
