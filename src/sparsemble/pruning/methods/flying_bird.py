"""Flying Bird: dynamic sparse adversarial training (Chen et al. 2022)."""

import copy
from dataclasses import dataclass
from typing import Literal, final

from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.pruning.dynamic_mask import DynamicNetwork, MaskUpdates, UpdateSchedule, final_mask, first_mask
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.fit import fit
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.schedule import Schedule


@final
@pruning_methods.register("flying_bird")
@dataclass(frozen=True, kw_only=True)
class FlyingBird(PruningMethod):
    """Sparse from the start; now and then each layer drops its smallest weights and as many others grow, at random.

    A pruned weight may come back: that is the method. It is exactly as sparse at every step.

    Source: Chen et al. 2022 (Sparsity winning twice), section 3.2; settings as in method.md section 4. Departs: weights
    start from the dense parent where the first mask keeps them; the time between moves is the same throughout; the mask
    stands still in the last part of training, so that what grew last is trained, too.
    """

    epochs: int = 200
    """Epochs of training, >= 1."""
    every: float = 2.3
    """Epochs between two moves, > 0; 2.3 is 900 steps on CIFAR-10 with batches of 128."""
    start: Literal["random", "scores"] = "random"
    """First mask: drawn, or of the highest scores."""
    drop: float = 0.5
    """Share of the kept weights that the first move drops, in (0, 1); falls along a cosine."""
    drop_last: float = 0.005
    """Share that it falls to, in (0, drop]."""
    rest: float = 0.25
    """Share of the training, its end, in which the mask stands still, in [0, 1)."""
    schedule: Schedule = Schedule(
        learning_rate=0.1, optimiser=SGD(weight_decay=5e-4), lr_schedule=MultiStep(factor=0.1, milestones=(0.5, 0.75))
    )
    """Of the training; the batch size of the context holds, not this one's."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.every > 0:
            raise InputError(f"epochs = {self.epochs} must be 1 or more and every = {self.every:g} above 0")
        if not 0 < self.drop_last <= self.drop < 1:
            raise InputError(f"drop_last = {self.drop_last:g} and drop = {self.drop:g} must rise within (0, 1)")
        if not 0 <= self.rest < 1:
            raise InputError(f"rest = {self.rest:g} must lie in [0, 1)")

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Train, drop and grow."""
        batches = context.images(self.name)
        start = first_mask(scores, target, context.rng if self.start == "random" else None)
        learner = DynamicNetwork(copy.deepcopy(model), start, target)
        plan = UpdateSchedule(
            steps=self.epochs * len(batches),
            every=max(round(self.every * len(batches)), 1),
            first=self.drop,
            last=self.drop_last,
            rest=self.rest,
        )
        history = fit(
            learner,
            context.loss,
            batches,
            self.schedule,
            epochs=self.epochs,
            threat=context.threat,
            rng=context.rng,
            callbacks=[MaskUpdates(learner, plan, context.rng), *context.callbacks],
            checkpoint=context.checkpoint,
            precision=context.precision,
        )
        mask = final_mask(learner)
        mask.apply_(learner.network)
        return PruningResult(learner.network, mask, history)
