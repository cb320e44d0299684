"""Decide which weights stay: scores, methods, masks, sparsity budget."""

from typing import Any

from sparsemble.core.registry import Registry, component_names, find_component
from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning import budget, granularity, layer_rates
from sparsemble.pruning.granularity import Granularity
from sparsemble.pruning.mask import KeepZero, Mask, jaccard
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import PruningScore, pruning_scores
from sparsemble.pruning.target import SparsityTarget

__all__ = [
    "Granularity",
    "KeepZero",
    "Mask",
    "PruningContext",
    "PruningMethod",
    "PruningResult",
    "PruningScore",
    "SparsityTarget",
    "jaccard",
    "prunable_layers",
    "pruning_methods",
    "pruning_scores",
]

REGISTRIES: dict[str, Registry[Any]] = {
    "scores": pruning_scores,
    "methods": pruning_methods,
    "granularities": granularity.granularities,
    "budgets": budget.budgets,
    "rates": layer_rates.layer_rates,
}
for folder, registry in REGISTRIES.items():
    registry.register_package(f"sparsemble.pruning.{folder}")


def __getattr__(name: str) -> Any:
    """Return a method, granularity, budget, division of rates or score by the name of its class: `HARP`, `NM`."""
    return find_component(name, *REGISTRIES.values())


def __dir__() -> list[str]:
    return [*__all__, *component_names(*REGISTRIES.values())]
