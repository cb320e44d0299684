"""Flying Bird+: dynamic sparse adversarial training that watches for overfitting (Chen et al. 2022)."""

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.module_state import eval_mode
from sparsemble.pruning.dynamic_mask import DynamicNetwork, MaskUpdates, UpdateSchedule, final_mask, first_mask
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training import distributed
from sparsemble.training.callbacks import Callback
from sparsemble.training.fit import fit
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.precision import full_precision
from sparsemble.training.schedule import Schedule

LOOK_BACK = 4
"""Epochs over which the gap is watched."""


@final
@pruning_methods.register("flying_bird_plus")
@dataclass(frozen=True, kw_only=True)
class FlyingBirdPlus(PruningMethod):
    """Flying Bird whose density gives way: less grows where it overfits, more where it cannot keep up.

    From the middle of training on, a share `faster` of what is dropped does not grow again if the gap between training
    and held-out accuracy widened in at least half of the last four epochs (loss fell, held-out robust accuracy fell);
    a share `slower` grows in addition if held-out robust accuracy fell in the last. The last move ends at the target.

    Source: Chen et al. 2022 (Sparsity winning twice), section 3.2; settings as in method.md section 4. Departs: as
    `flying_bird`; held-out accuracy stands for held-out loss; the density is made exact at the end.
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
    faster: float = 0.4
    """Share of what is dropped that does not grow again while it overfits, in [0, 1]."""
    slower: float = 0.05
    """Share that grows in addition while it cannot keep up, >= 0."""
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
        if not (0 <= self.faster <= 1 and self.slower >= 0):
            raise InputError(f"faster = {self.faster:g} must lie in [0, 1] and slower = {self.slower:g} be 0 or more")
        if not 0 <= self.rest < 1:
            raise InputError(f"rest = {self.rest:g} must lie in [0, 1)")

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Train, drop and grow."""
        batches = context.images(self.name)
        if context.held_out is None:
            raise InputError(f'method "{self.name}" watches held-out accuracy and needs held-out images; give it some')
        start = first_mask(scores, target, context.rng if self.start == "random" else None)
        learner = DynamicNetwork(copy.deepcopy(model), start, target)
        plan = UpdateSchedule(
            steps=self.epochs * len(batches),
            every=max(round(self.every * len(batches)), 1),
            first=self.drop,
            last=self.drop_last,
            rest=self.rest,
        )
        watch = OverfittingMonitor(
            learner, plan, context.held_out, epochs=self.epochs, faster=self.faster, slower=self.slower
        )
        history = fit(
            learner,
            context.loss,
            batches,
            self.schedule,
            epochs=self.epochs,
            threat=context.threat,
            rng=context.rng,
            callbacks=[MaskUpdates(learner, plan, context.rng), watch, *context.callbacks],
            checkpoint=context.checkpoint,
            precision=context.precision,
        )
        mask = final_mask(learner)
        mask.apply_(learner.network)
        return PruningResult(learner.network, mask, history)


@final
class OverfittingMonitor(Callback):
    """Measures held-out accuracy after every epoch and tells the plan."""

    def __init__(
        self,
        learner: DynamicNetwork,
        plan: UpdateSchedule,
        held_out: Callable[[nn.Module], dict[str, float]],
        *,
        epochs: int,
        faster: float,
        slower: float,
    ) -> None:
        self.learner, self.plan, self.held_out, self.epochs = learner, plan, held_out, epochs
        self.faster, self.slower = faster, slower
        self.seen: list[tuple[float, float]] = []
        """Loss and held-out robust accuracy of each epoch."""

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Measure, and decide how the next moves go."""
        with eval_mode(self.learner), full_precision(self.learner):
            found = distributed.broadcast_value(self.held_out(self.learner))  # all processes must decide alike
        record |= {f"watched_{key}": value for key, value in found.items()}
        self.seen.append((float(record["loss"]), found["held_out_robust"]))
        self._decide()

    def state(self) -> dict[str, Tensor]:
        """Return what was seen."""
        return {"seen": torch.tensor(self.seen, dtype=torch.float64).view(-1, 2)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.seen = [(float(loss), float(robust)) for loss, robust in state["seen"]]
        self._decide()

    def _decide(self) -> None:
        self.plan.faster = 0.0
        steps = list(itertools.pairwise(self.seen))[-LOOK_BACK:]
        if 2 * len(self.seen) < self.epochs or not steps:
            return
        wider = sum(now[0] < before[0] and now[1] < before[1] for before, now in steps)
        if 2 * wider >= LOOK_BACK:
            self.plan.faster += self.faster
        if steps[-1][1][1] < steps[-1][0][1]:
            self.plan.faster -= self.slower
