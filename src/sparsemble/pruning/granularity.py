"""Granularities: groups of weights that are kept or removed together."""

from abc import abstractmethod
from math import prod
from typing import ClassVar

from torch import Tensor

from sparsemble.core.registry import Component, Registry


class Granularity(Component):
    """The smallest group of weights of a layer that a mask can remove."""

    whole_channels: ClassVar[bool] = False
    """Whether groups are whole channels, which several layers share (`pruning.channels`)."""

    def check(self, shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
        """Refuse a sparsity that layers of these shapes, by name, cannot reach; none unless overridden."""

    def capacity(self, shape: tuple[int, ...]) -> int:
        """Return the most weights that a layer of this shape may keep; all of them unless overridden."""
        return prod(shape)

    @abstractmethod
    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Return a boolean tensor like `scores`, true at exactly the `count` best, at most `capacity`."""


granularities: Registry[Granularity] = Registry("granularity", Granularity)
