"""Budgets: the cost that sparsity is a fraction of."""

from abc import abstractmethod

from torch import Tensor

from sparsemble.core.registry import Component, Registry


class Budget(Component):
    """The cost of a layer that keeps some of its weights; sparsity 0.9 leaves a tenth of the dense cost."""

    @abstractmethod
    def cost(self, nonzeros: Tensor, sizes: Tensor, positions: Tensor) -> Tensor:
        """Return the cost of each layer (L), differentiable in `nonzeros`.

        Args:
            nonzeros: weights that stay in each layer (L), > 0.
            sizes: weights of each layer (L).
            positions: how often each weight is used for one image, by layer (L).
        """


budgets: Registry[Budget] = Registry("budget", Budget)
