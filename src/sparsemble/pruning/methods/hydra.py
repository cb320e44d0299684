"""HYDRA: learn scores under the robust loss (Sehwag et al. 2020)."""

import copy
from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.pruning.learned_mask import ScoredNetwork, with_cached_masks
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores, rescale
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.schedule import Schedule


@final
@pruning_methods.register("hydra")
@dataclass(frozen=True, kw_only=True)
class HYDRA(PruningMethod):
    """Learns scores under the robust loss with frozen weights; the keep rates of the layers are fixed.

    Source: Sehwag et al. 2020, section 3, with its settings. Departs: scale and shift of BatchNorm are trained too, as
    in HARP; any score initialises the learned ones, rescaled as theirs.
    """

    epochs: int = 20
    """Epochs of mask learning, >= 1."""
    schedule: Schedule = Schedule(learning_rate=0.1, lr_schedule=Cosine(), optimiser=SGD(weight_decay=1e-4))
    """Of the scores; the batch size is that of the context."""

    def __post_init__(self) -> None:
        check_at_least(1, epochs=self.epochs)

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Learn the mask."""
        batches = context.images(self.name)
        target.mask(scores)  # refuses impossible scores before any work
        learner = ScoredNetwork(copy.deepcopy(model), rescale(scores), target, free_norms=True)
        loss = with_cached_masks(context.loss, learner.layers)
        history = context.fit(learner, loss, batches, self.schedule, epochs=self.epochs)
        mask = learner.final_mask()
        return PruningResult(learner.pruned_(mask), mask, history)
