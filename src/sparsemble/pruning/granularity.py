"""Granularities: groups of weights that are kept or removed together."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from sparsemble.core.registry import Component, Registry


class Granularity(Component):
    """The smallest group of weights of a layer that a mask can remove."""

    whole_channels: ClassVar[bool] = False
    """Whether groups are whole channels, which several layers share (`pruning.channels`)."""

    @abstractmethod
    def check(self, shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
        """Check that a sparsity is possible, before any work.

        Args:
            shapes: of the layers' weights, by name.
            sparsity: share of the weights to remove.

        Raises:
            InputError: the sparsity cannot be reached, or a layer does not fit.
        """

    @abstractmethod
    def capacity(self, shape: tuple[int, ...]) -> int:
        """Return the most weights that a layer of this shape may keep."""

    @abstractmethod
    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Return a boolean tensor of the shape of `scores` with exactly `count` true entries, the best ones.

        Args:
            scores: of a layer's weights; higher = keep.
            count: 0 to `capacity`.
        """


granularities: Registry[Granularity] = Registry("granularity", Granularity)
