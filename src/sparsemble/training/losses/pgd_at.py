"""PGD adversarial training (Madry et al. 2018, eq. 2.1)."""

from dataclasses import dataclass
from typing import Literal, final

from torch import Generator, nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.training.loss import (
    AdversarialLoss,
    LossOutput,
    check_label_smoothing,
    craft,
    cross_entropy,
    training_losses,
)


@final
@training_losses.register("pgd_at")
@dataclass(frozen=True, kw_only=True)
class PGDAT(AdversarialLoss):
    """Cross-entropy on adversarial images: min_w E max_{|d| <= eps} CE(f(x + d), y).

    Source: Madry et al. 2018, eq. 2.1; EED main paper, eqs. 1-2. Labels are smoothed in the loss, not in the attack.
    """

    attack: Attack = PGD(steps=10, keep_best=False)
    """Crafts the adversarial images."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in [0, 1)."""
    batch_norm: Literal["eval", "train"] = "eval"
    """Whether BatchNorm normalises by its running statistics (eval) or the batch's (train) while crafting."""

    def __post_init__(self) -> None:
        check_label_smoothing(self.label_smoothing)

    def adversarial_images(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Craft images with the attack."""
        return craft(model, self.attack, x, y, threat, rng=rng, batch_norm=self.batch_norm)

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the mean cross-entropy on adversarial images."""
        return LossOutput(cross_entropy(model(x_adv), y, self.label_smoothing), adversarial=x_adv)
