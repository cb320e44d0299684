"""TwinRep: weights as products of two factors (Li et al. 2023)."""

import copy
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsemble.core.errors import InputError
from sparsemble.pruning.learned_mask import remove_masks_, with_cached_masks
from sparsemble.pruning.mask import Mask
from sparsemble.pruning.method import LearnerNetwork, PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.callbacks import Callback
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.schedule import Schedule


@final
@pruning_methods.register("twinrep")
@dataclass(frozen=True, kw_only=True)
class TwinRep(PruningMethod):
    """Trains w = w1 * w2 * mask under the robust loss; after `prune_at` epochs the smallest |w1 w2| are masked.

    Source: Li et al. 2023, section 3, with its settings. Departs: starts from the dense parent, w1 = sign(w) sqrt|w|
    and w2 = sqrt|w|, not from new weights; the target divides the budget among layers (theirs: one threshold for all,
    `rates = "global"`); the given scores are ignored.
    """

    epochs: int = 100
    """Epochs of training, >= 1."""
    prune_at: int = 10
    """Epoch after which weights are masked, 1 to `epochs` - 1."""
    schedule: Schedule = Schedule(
        learning_rate=0.1, optimiser=SGD(weight_decay=2e-4), lr_schedule=MultiStep(factor=0.1, milestones=(0.7, 0.85))
    )
    """Of the training; the batch size is that of the context."""

    def __post_init__(self) -> None:
        if not 1 <= self.prune_at < self.epochs:
            raise InputError(
                f"prune_at = {self.prune_at} must be between 1 and epochs - 1 = {self.epochs - 1}, so that the "
                "remaining weights are trained"
            )

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Train, mask, and train the remaining weights."""
        batches = context.images(self.name)
        target.mask(scores)  # refuses impossible scores before any work
        learner = TwinNetwork(copy.deepcopy(model), target)
        loss = with_cached_masks(context.loss, learner.layers)
        callbacks = [_MaskAt(learner, self.prune_at)]
        history = context.fit(learner, loss, batches, self.schedule, epochs=self.epochs, callbacks=callbacks)
        mask = learner.mask()
        return PruningResult(remove_masks_(learner.network, learner.layers, keep_masked=True), mask, history)


@final
class TwinNetwork(LearnerNetwork):
    """A network, parametrized in place, whose weights are products of two factors and a mask."""

    def __init__(self, network: nn.Module, target: SparsityTarget) -> None:
        super().__init__(network, target)
        self.twins: dict[str, _Twin] = {}
        for name, layer in self.layers.items():
            size = layer.weight.detach().abs().sqrt()
            self.twins[name] = _Twin(size)
            layer.weight = nn.Parameter(layer.weight.detach().sign() * size)
            parametrize.register_parametrization(layer, "weight", self.twins[name], unsafe=True)

    def mask(self) -> Mask:
        """Return a copy of the present mask."""
        return Mask({name: twin.keep.clone() for name, twin in self.twins.items()})

    @torch.no_grad()
    def mask_(self) -> None:
        """Mask the smallest products."""
        for name, keep in self.target.mask({n: layer.weight.abs() for n, layer in self.layers.items()}).items():
            self.twins[name].keep.copy_(keep)


@final
class _Twin(nn.Module):
    """The second factor of a layer's weights, and their mask."""

    keep: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(factor.clone())
        self.register_buffer("keep", torch.ones_like(factor, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor * self.keep


@final
class _MaskAt(Callback):
    """Masks the smallest products once, after a given epoch."""

    def __init__(self, learner: TwinNetwork, epoch: int) -> None:
        self.learner, self.epoch = learner, epoch

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Mask, if it is time."""
        if epoch == self.epoch:
            self.learner.mask_()
