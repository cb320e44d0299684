"""Layer rates: how a budget is divided among layers."""

from abc import abstractmethod
from collections.abc import Callable

from sparsemble.core.registry import Component, Registry
from sparsemble.pruning.score import Scores

KeepRates = Callable[[float], dict[str, float]]
"""Keep rates of the layers, in [0, 1], by a level that rises from nothing at 0 to everything at 1."""


class LayerRates(Component):
    """Gives the share of each layer that stays, at any level of the whole."""

    @abstractmethod
    def keep_rates(self, scores: Scores) -> KeepRates:
        """Return the keep rates by level; `scores` are by layer or, for whole channels, of the channels by group."""


layer_rates: Registry[LayerRates] = Registry("layer rates", LayerRates)
