"""ERM: the weight, scaled by its layer's fan-in (EED main paper, eq. 9)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.core.types import Images, Labels
from sparsemble.pruning.mask import prunable_layers
from sparsemble.pruning.score import PruningScore, Scores, fan_in, pruning_scores


@final
@pruning_scores.register("erm")
@dataclass(frozen=True, kw_only=True)
class ERM(PruningScore):
    """sqrt(6 / fan_in) |w| / max |w|, the initial scores of HYDRA and HARP.

    Source: EED main paper, eq. 9.
    """

    def __call__(self, model: nn.Module, adversarial: Callable[[], Iterable[tuple[Images, Labels]]]) -> Scores:
        """Score every prunable weight."""
        magnitudes = {name: layer.weight.detach().abs() for name, layer in prunable_layers(model).items()}
        return {name: math.sqrt(6 / fan_in(w)) * w / w.max().clamp_min(1e-30) for name, w in magnitudes.items()}
