"""Decide which weights stay: score, method, granularity, mask."""

from sparsemble.pruning import budget, granularity, layer_rates
from sparsemble.pruning.granularity import Granularity
from sparsemble.pruning.mask import KeepZero, Mask, jaccard, prunable_layers
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import PruningScore, pruning_scores
from sparsemble.pruning.target import SparsityTarget

__all__ = [
    "Granularity",
    "KeepZero",
    "Mask",
    "PruningResult",
    "PruningContext",
    "PruningMethod",
    "PruningScore",
    "SparsityTarget",
    "jaccard",
    "prunable_layers",
    "pruning_methods",
    "pruning_scores",
]

for registry, folder in (
    (pruning_scores, "scores"),
    (pruning_methods, "methods"),
    (granularity.granularities, "granularities"),
    (budget.budgets, "budgets"),
    (layer_rates.layer_rates, "rates"),
):
    registry.walk(f"sparsemble.pruning.{folder}")
