"""Flying Bird+: dynamic sparse adversarial training with an adaptive density (Chen et al. 2022)."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from sparsemble.core.argument_checks import check_at_least, check_interval
from sparsemble.core.errors import InputError
from sparsemble.core.module_state import eval_mode
from sparsemble.pruning.dynamic_mask import DynamicNetwork, DynamicTraining, UpdateSchedule
from sparsemble.pruning.method import PruningContext, pruning_methods
from sparsemble.training import distributed
from sparsemble.training.callbacks import Callback
from sparsemble.training.precision import full_precision

WINDOW = 4
"""Epochs over which the generalisation gap is compared."""


@final
@pruning_methods.register("flying_bird_plus")
@dataclass(frozen=True, kw_only=True)
class FlyingBirdPlus(DynamicTraining):
    """Flying Bird with a density that falls while the network overfits and rises while it underfits.

    From the middle of training on, a share `faster` of the dropped weights is not regrown if the gap between training
    and held-out accuracy widened in at least half of the last four epochs (loss fell, held-out robust accuracy fell);
    a share `slower` grows in addition if held-out robust accuracy fell in the last. The last update restores the
    target.

    Source: Chen et al. 2022 (Sparsity winning twice), section 3.2, with its settings. Departs: as `flying_bird`;
    held-out accuracy stands for held-out loss; the density is made exact at the end.
    """

    faster: float = 0.4
    """Share of the dropped weights that is not regrown while the network overfits, in [0, 1]."""
    slower: float = 0.05
    """Share that grows in addition while it underfits, >= 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interval("[0, 1]", faster=self.faster)
        check_at_least(0, slower=self.slower)

    def _monitors(self, learner: DynamicNetwork, updates: UpdateSchedule, context: PruningContext) -> list[Callback]:
        if context.held_out is None:
            raise InputError(f'method "{self.name}" monitors held-out accuracy and needs held-out images; give it some')
        shares = {"faster": self.faster, "slower": self.slower}
        return [OverfittingMonitor(learner, updates, context.held_out, epochs=self.epochs, **shares)]


@final
class OverfittingMonitor(Callback):
    """Measures held-out accuracy after every epoch and sets `not_regrown` of the next mask updates."""

    def __init__(
        self,
        learner: DynamicNetwork,
        updates: UpdateSchedule,
        held_out: Callable[[nn.Module], dict[str, float]],
        *,
        epochs: int,
        faster: float,
        slower: float,
    ) -> None:
        self.learner, self.updates, self.held_out, self.epochs = learner, updates, held_out, epochs
        self.faster, self.slower = faster, slower
        self.progress: list[tuple[float, float]] = []
        """Training loss and held-out robust accuracy of each epoch."""

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Measure, and adjust the next updates."""
        with eval_mode(self.learner), full_precision(self.learner):
            accuracy = distributed.broadcast_value(self.held_out(self.learner))  # all processes must decide alike
        record |= {f"monitored_{key}": value for key, value in accuracy.items()}
        self.progress.append((float(record["loss"]), accuracy["held_out_robust"]))
        self._adjust()

    def state(self) -> dict[str, Tensor]:
        """Return loss and accuracy of all epochs."""
        return {"progress": torch.tensor(self.progress, dtype=torch.float64).view(-1, 2)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set loss and accuracy of all epochs, and adjust the next updates."""
        self.progress = [(float(loss), float(robust)) for loss, robust in state["progress"]]
        self._adjust()

    def _adjust(self) -> None:
        self.updates.not_regrown = 0.0
        pairs = list(itertools.pairwise(self.progress))[-WINDOW:]
        if 2 * len(self.progress) < self.epochs or not pairs:
            return
        wider = sum(now[0] < before[0] and now[1] < before[1] for before, now in pairs)
        if 2 * wider >= WINDOW:
            self.updates.not_regrown += self.faster
        if pairs[-1][1][1] < pairs[-1][0][1]:
            self.updates.not_regrown -= self.slower
