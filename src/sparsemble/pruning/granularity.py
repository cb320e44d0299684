"""What is kept or removed together."""

from abc import abstractmethod

from torch import Tensor

from sparsemble.core.registry import Plug, Registry


class Granularity(Plug):
    """The smallest piece of a layer that a mask can remove."""

    @abstractmethod
    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Return a boolean tensor of the shape of `scores` with exactly `count` true entries, the best ones."""


granularities: Registry[Granularity] = Registry("granularity", Granularity)
