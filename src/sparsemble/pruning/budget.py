"""What sparsity is a share of."""

from abc import abstractmethod

from torch import Tensor

from sparsemble.core.registry import Component, Registry


class Budget(Component):
    """What a layer costs that keeps some of its weights; sparsity 0.9 leaves a tenth of the whole."""

    @abstractmethod
    def cost(self, kept: Tensor, sizes: Tensor, positions: Tensor) -> Tensor:
        """Return the cost of each layer, (L), differentiable in `kept`.

        Args:
            kept: (L) weights that stay, > 0.
            sizes: (L) weights of the layers.
            positions: (L) how often each weight is used for one image.
        """


budgets: Registry[Budget] = Registry("budget", Budget)
