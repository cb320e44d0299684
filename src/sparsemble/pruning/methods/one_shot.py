"""Keep the highest scores, once."""

import copy
from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget


@final
@pruning_methods.register("one_shot")
@dataclass(frozen=True, kw_only=True)
class OneShot(PruningMethod):
    """Keeps the highest scores without learning anything; the target divides the budget among layers."""

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Prune once."""
        mask = target.mask(scores)
        pruned = copy.deepcopy(model)
        mask.apply_(pruned)
        return PruningResult(pruned, mask, [])
