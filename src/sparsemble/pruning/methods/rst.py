"""RST: robust masks in a random network (Fu et al. 2021)."""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.learned_mask import ScoredNetwork, with_cached_masks
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores, fan_in
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.schedule import Schedule


@final
@pruning_methods.register("rst")
@dataclass(frozen=True, kw_only=True)
class RST(PruningMethod):
    """Learns a mask under the robust loss in a network of random signs, whose weights are never trained.

    Weights are plus or minus sqrt(2 / fan_in), biases 0, BatchNorm has no affine part; scores are drawn uniformly and
    learned (edge-popup). The trained weights and the given scores are ignored, and the result is not fine-tuned.

    Source: Fu et al. 2021 (Drawing robust scratch tickets), section 4, with its settings.
    """

    fine_tunes: ClassVar[bool] = False

    epochs: int = 160
    """Epochs of mask learning, >= 1."""
    schedule: Schedule = Schedule(
        learning_rate=0.1, optimiser=SGD(weight_decay=5e-4), lr_schedule=MultiStep(factor=0.1, milestones=(0.5, 0.75))
    )
    """Of the scores; the batch size is that of the context."""

    def __post_init__(self) -> None:
        check_at_least(1, epochs=self.epochs)

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Draw a network and learn its mask."""
        batches = context.images(self.name)
        target.mask(scores)  # refuses impossible scores before any work
        network = copy.deepcopy(model)
        drawn = _randomise_(network, context.rng)
        learner = ScoredNetwork(network, drawn, target, free_norms=False)
        loss = with_cached_masks(context.loss, learner.layers)
        history = context.fit(learner, loss, batches, self.schedule, epochs=self.epochs)
        mask = learner.final_mask()
        return PruningResult(learner.pruned_(mask), mask, history)


@torch.no_grad()
def _randomise_(network: nn.Module, rng: Generator) -> Scores:
    """Set weights to random signs of one magnitude, reset BatchNorm, and return random scores."""
    scores: Scores = {}
    for name, layer in prunable_layers(network).items():
        weight = layer.weight
        sign = 2.0 * (torch.rand(weight.shape, generator=rng, device=weight.device) < 0.5) - 1
        weight.copy_(sign * math.sqrt(2 / fan_in(weight)))
        if layer.bias is not None:
            layer.bias.zero_()
        bound = 1 / math.sqrt(fan_in(weight))  # Kaiming's uniform range with a = sqrt(5)
        scores[name] = bound * (2 * torch.rand(weight.shape, generator=rng, device=weight.device) - 1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.reset_parameters()
    return scores
