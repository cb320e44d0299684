"""Fast adversarial training: one step from a random start (Wong et al. 2020)."""

from dataclasses import dataclass, replace
from typing import Literal, final

from torch import Generator, nn

from sparsemble.attacks.fgsm import FGSM
from sparsemble.core.argument_checks import check_above_zero, check_interval
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.training.loss import AdversarialLoss, LossOutput, craft, cross_entropy, training_losses


@final
@training_losses.register("fgsm_rs")
@dataclass(frozen=True, kw_only=True)
class FGSMRS(AdversarialLoss):
    """Cross-entropy on images crafted by one step from a random start; cheap, prone to catastrophic overfitting.

    Source: Wong et al. 2020, algorithm 3. Departs: BatchNorm is in eval mode while crafting unless set otherwise;
    their code crafts in train mode and moves the running statistics.
    """

    step_size: float = 1.25
    """Length of the step in units of eps, > 0."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in [0, 1)."""
    batch_norm: Literal["eval", "train"] = "eval"
    """Whether BatchNorm normalises by its running statistics (eval) or the batch's (train) while crafting."""

    def __post_init__(self) -> None:
        check_interval("[0, 1)", label_smoothing=self.label_smoothing)
        check_above_zero(step_size=self.step_size)

    def adversarial_images(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Take one step from a random point of the threat model, and project back into it."""
        attack = FGSM(step_size=self.step_size, random_start=True)
        return craft(model, attack, x, y, threat, rng=rng, batch_norm=self.batch_norm)

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the mean cross-entropy on adversarial images."""
        return LossOutput(cross_entropy(model(x_adv), y, self.label_smoothing), adversarial=x_adv)

    def with_weaker_attack(self, factor: float) -> "FGSMRS":
        """Return this loss with a smaller step."""
        return replace(self, step_size=self.step_size * factor)
