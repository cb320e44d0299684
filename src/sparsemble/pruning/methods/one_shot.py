"""Keep the highest scores, once."""

import copy
from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.pruning.granularity import Granularity
from sparsemble.pruning.mask import Mask
from sparsemble.pruning.method import Pruned, PruningContext, PruningMethod, kept_weights, pruning_methods
from sparsemble.pruning.methods.harp import exact_counts
from sparsemble.pruning.score import Scores


@final
@pruning_methods.register("one_shot")
@dataclass(frozen=True, kw_only=True)
class OneShot(PruningMethod):
    """The same share of every layer, by score, without learning anything."""

    def __call__(
        self, model: nn.Module, scores: Scores, sparsity: float, granularity: Granularity, context: PruningContext
    ) -> Pruned:
        """Prune to `sparsity`."""
        sizes = {name: score.numel() for name, score in scores.items()}
        total = sum(sizes.values())
        counts = exact_counts(dict.fromkeys(scores, 1 - sparsity), sizes, kept_weights(total, sparsity))
        mask = Mask({name: granularity.keep(score, counts[name]) for name, score in scores.items()})
        pruned = copy.deepcopy(model)
        mask.apply_(pruned)
        return Pruned(pruned, mask, [])
