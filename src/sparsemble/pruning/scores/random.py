"""Random scores."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.pruning.mask import prunable_layers
from sparsemble.pruning.score import PruningScore, Scores, pruning_scores


@final
@pruning_scores.register("random")
@dataclass(frozen=True, kw_only=True)
class Random(PruningScore):
    """Uniform random numbers in [0, 1), 0 for weights that are already 0; the lower baseline."""

    seed: int = 0
    """Seed of the random numbers, >= 0."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed = {self.seed} must be 0 or more")

    def __call__(self, model: nn.Module, adversarial: Callable[[], Iterable[tuple[Images, Labels]]]) -> Scores:
        """Draw a score for every prunable weight."""
        rng = seeded(self.seed)
        scores: Scores = {}
        for name, layer in prunable_layers(model).items():
            drawn = torch.rand(layer.weight.shape, generator=rng).to(layer.weight.device)
            scores[name] = drawn * (layer.weight.detach() != 0)
        return scores
