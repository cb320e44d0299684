"""Cross-entropy on clean images."""

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Generator, nn

from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.training.objective import LossOutput, Objective, objectives


@final
@objectives.register("natural")
@dataclass(frozen=True, kw_only=True)
class Natural(Objective):
    """Cross-entropy on clean images; gives no robustness."""

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the mean cross-entropy."""
        return LossOutput(F.cross_entropy(model(x), y))
