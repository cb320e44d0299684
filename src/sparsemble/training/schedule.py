"""How fast to learn: stochastic gradient descent and the course of its rate."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.registry import Plug, Registry


class RateDecay(Plug):
    """Course of the learning rate over training."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Return the factor on the peak rate at this share of training, progress in [0, 1)."""


rate_decays: Registry[RateDecay] = Registry("rate decay", RateDecay)


@final
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """SGD with momentum, and how its rate moves."""

    rate: float = 0.1
    """Peak learning rate, > 0."""
    batch_size: int = 128
    """Images a step; an incomplete last batch is left out."""
    momentum: float = 0.9
    """In [0, 1)."""
    nesterov: bool = False
    """Look ahead by one momentum step."""
    weight_decay: float = 5e-4
    """L2 penalty on every trained tensor, >= 0."""
    decay: RateDecay
    """Course of the rate."""

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise InputError(f"rate = {self.rate:g} must be above 0")
        if self.batch_size < 2:
            raise InputError(f"batch_size = {self.batch_size} must be 2 or more (BatchNorm needs two images)")
        if self.nesterov and not self.momentum:
            raise InputError("nesterov = true needs a momentum above 0")
        if not (0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise InputError(
                f"momentum = {self.momentum:g} must lie in [0, 1) and weight_decay = {self.weight_decay:g} be 0 or more"
            )

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
        """Make the optimiser of the parameters that want a gradient."""
        return torch.optim.SGD(
            [p for p in parameters if p.requires_grad],
            lr=self.rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )
