"""HYDRA: learn scores under the robust loss (Sehwag et al. 2020)."""

import copy
from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.pruning.learned_mask import ScoredNetwork, masked
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores, rescale
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.fit import fit
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.schedule import Schedule


@final
@pruning_methods.register("hydra")
@dataclass(frozen=True, kw_only=True)
class HYDRA(PruningMethod):
    """Scores learned under the robust loss, weights frozen, the rates of the layers fixed.

    Source: Sehwag et al. 2020, section 3, with the settings of method.md section 4. Departs: BatchNorm's affine part
    learns along, as in HARP; any score starts it, rescaled as theirs.
    """

    epochs: int = 20
    """Epochs of mask learning, >= 1."""
    schedule: Schedule = Schedule(learning_rate=0.1, lr_schedule=Cosine())
    """Of the scores; the batch size of the context holds, not this one's."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"epochs = {self.epochs} must be 1 or more")

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Learn the mask."""
        batches = context.images(self.name)
        target.mask(scores)  # refuses what cannot be before any work
        learner = ScoredNetwork(copy.deepcopy(model), rescale(scores), target, free_norms=True)
        history = fit(
            learner,
            masked(context.loss, learner.layers),
            batches,
            self.schedule,
            epochs=self.epochs,
            threat=context.threat,
            rng=context.rng,
            callbacks=context.callbacks,
            checkpoint=context.checkpoint,
            precision=context.precision,
        )
        mask = learner.final_mask()
        pruned = learner.plain()
        mask.apply_(pruned)
        return PruningResult(pruned, mask, history)
