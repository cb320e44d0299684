"""PGD adversarial training (Madry et al. 2018, eq. 2.1)."""

from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.core.argument_checks import check_interval
from sparsemble.core.types import Images, Labels
from sparsemble.training.loss import CraftedLoss, LossOutput, cross_entropy, training_losses


@final
@training_losses.register("pgd_at")
@dataclass(frozen=True, kw_only=True)
class PGDAT(CraftedLoss):
    """Cross-entropy on adversarial images: min_w E max_{|d| <= eps} CE(f(x + d), y).

    Source: Madry et al. 2018, eq. 2.1; EED main paper, eqs. 1-2. Labels are smoothed in the loss, not in the attack.
    """

    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in [0, 1)."""

    def __post_init__(self) -> None:
        check_interval("[0, 1)", label_smoothing=self.label_smoothing)

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the mean cross-entropy on adversarial images."""
        return LossOutput(cross_entropy(model(x_adv), y, self.label_smoothing), adversarial=x_adv)
