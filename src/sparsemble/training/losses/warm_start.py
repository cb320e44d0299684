"""Standard training before robust training (Gupta et al. 2020)."""

from dataclasses import dataclass
from typing import final

from torch import Generator, nn

from sparsemble.core.argument_checks import check_interval
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.training.loss import LossOutput, TrainingLoss, training_losses
from sparsemble.training.losses.n_fgsm import NFGSM
from sparsemble.training.losses.standard import Standard


@final
@training_losses.register("warm_start")
@dataclass(frozen=True, kw_only=True)
class WarmStart(TrainingLoss):
    """Standard training at first, then another loss.

    Source: Gupta et al. 2020 (delayed adversarial training). Departs: the share is a setting, where they watch the
    loss; the learning rate goes on with its schedule.
    """

    share: float = 0.1
    """Share of the training on clean images, in [0, 1)."""
    inner: TrainingLoss = NFGSM()
    """The loss of the rest."""

    def __post_init__(self) -> None:
        check_interval("[0, 1)", share=self.share)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of the rest of the training."""
        return self.inner(model, x, y, threat, rng=rng)

    def at(self, progress: float) -> TrainingLoss:
        """Return the standard loss during the first share."""
        return Standard() if progress < self.share else self._changed({"inner": self.inner.at(progress)})
