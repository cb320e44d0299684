"""Flying Bird: dynamic sparse adversarial training (Chen et al. 2022)."""

from dataclasses import dataclass
from typing import final

from sparsemble.pruning.dynamic_mask import DynamicNetwork, DynamicTraining, UpdateSchedule
from sparsemble.pruning.method import PruningContext, pruning_methods
from sparsemble.training.callbacks import Callback


@final
@pruning_methods.register("flying_bird")
@dataclass(frozen=True, kw_only=True)
class FlyingBird(DynamicTraining):
    """Trains a sparse network in which each layer regularly drops its smallest weights and regrows as many at random.

    A pruned weight may return. The network is exactly as sparse as the target at every step.

    Source: Chen et al. 2022 (Sparsity winning twice), section 3.2, with its settings. Departs: weights start from the
    dense parent where the first mask keeps them; the time between updates is constant; the mask is fixed in the last
    part of training, so that the weights that grew last are trained, too.
    """

    def _monitors(self, learner: DynamicNetwork, updates: UpdateSchedule, context: PruningContext) -> list[Callback]:
        return []
