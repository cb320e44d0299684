"""Cross-entropy on clean images."""

from dataclasses import dataclass
from typing import final

from torch import Generator, nn

from sparsemble.core.argument_checks import check_interval
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.training.loss import LossOutput, TrainingLoss, cross_entropy, training_losses


@final
@training_losses.register("standard")
@dataclass(frozen=True, kw_only=True)
class Standard(TrainingLoss):
    """Cross-entropy on clean images, without adversarial training."""

    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in [0, 1)."""

    def __post_init__(self) -> None:
        check_interval("[0, 1)", label_smoothing=self.label_smoothing)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the mean cross-entropy."""
        return LossOutput(cross_entropy(model(x), y, self.label_smoothing))
