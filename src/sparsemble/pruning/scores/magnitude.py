"""Absolute weight."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.core.types import Images, Labels
from sparsemble.pruning.mask import prunable_layers
from sparsemble.pruning.score import PruningScore, Scores, pruning_scores


@final
@pruning_scores.register("magnitude")
@dataclass(frozen=True, kw_only=True)
class Magnitude(PruningScore):
    """The absolute weight; the simplest baseline."""

    def __call__(self, model: nn.Module, adversarial: Callable[[], Iterable[tuple[Images, Labels]]]) -> Scores:
        """Score every prunable weight."""
        return {name: layer.weight.detach().abs() for name, layer in prunable_layers(model).items()}
