"""Flying Bird: dynamic sparse adversarial training (Chen et al. 2022)."""

import copy
from dataclasses import dataclass
from typing import Literal, final

from torch import nn

from sparsemble.pruning.dynamic_mask import DynamicNetwork, UpdateSchedule, check_settings, first_mask, train_dynamic
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.schedule import Schedule


@final
@pruning_methods.register("flying_bird")
@dataclass(frozen=True, kw_only=True)
class FlyingBird(PruningMethod):
    """Trains a sparse network in which each layer regularly drops its smallest weights and regrows as many at random.

    A pruned weight may return. The network is exactly as sparse as the target at every step.

    Source: Chen et al. 2022 (Sparsity winning twice), section 3.2, with its settings. Departs: weights start from the
    dense parent where the first mask keeps them; the time between updates is constant; the mask is fixed in the last
    part of training, so that the weights that grew last are trained, too.
    """

    epochs: int = 200
    """Epochs of training, >= 1."""
    every: float = 2.3
    """Epochs between two mask updates, > 0; 2.3 is 900 steps on CIFAR-10 with batches of 128."""
    start: Literal["random", "scores"] = "random"
    """First mask: random, or that of the highest scores."""
    drop: float = 0.5
    """Share of the kept weights that the first update drops, in (0, 1); falls along a cosine."""
    drop_last: float = 0.005
    """Share that it falls to, in (0, drop]."""
    rest: float = 0.25
    """Share of the training, at its end, in which the mask is fixed, in [0, 1)."""
    schedule: Schedule = Schedule(
        learning_rate=0.1, optimiser=SGD(weight_decay=5e-4), lr_schedule=MultiStep(factor=0.1, milestones=(0.5, 0.75))
    )
    """Of the training; the batch size is that of the context."""

    def __post_init__(self) -> None:
        check_settings(self.epochs, self.every, self.drop, self.drop_last, self.rest)

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Train while weights are dropped and regrown."""
        batches = context.images(self.name)
        start = first_mask(scores, target, context.rng if self.start == "random" else None)
        learner = DynamicNetwork(copy.deepcopy(model), start, target)
        updates = UpdateSchedule(
            steps=self.epochs * len(batches),
            every=max(round(self.every * len(batches)), 1),
            first=self.drop,
            last=self.drop_last,
            rest=self.rest,
        )
        return train_dynamic(learner, updates, context, batches, self.schedule, epochs=self.epochs)
