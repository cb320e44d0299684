"""N-FGSM: one step from strong noise, not clipped back (de Jorge et al. 2022)."""

from dataclasses import dataclass, replace
from typing import Literal, final

from torch import Generator, nn

from sparsemble.attacks.fgsm import FGSM
from sparsemble.core.argument_checks import check_above_zero, check_at_least, check_interval
from sparsemble.core.threat import LARGEST_EPS, ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.training.loss import AdversarialLoss, LossOutput, craft, cross_entropy, training_losses


@final
@training_losses.register("n_fgsm")
@dataclass(frozen=True, kw_only=True)
class NFGSM(AdversarialLoss):
    """Cross-entropy on images crafted by one step from a noisy image; cheap, less prone to overfitting than FGSM-RS.

    x_adv = n + step_size eps sign(gradient at n), with n = x + noise eps U(-1, 1); both are clipped to [0, 1], and
    x_adv may lie outside the threat model.

    Source: de Jorge et al. 2022, algorithm 1. Departs: BatchNorm is in eval mode while crafting unless set
    otherwise; for l2, which they do not treat, n is uniform in the ball of radius noise eps.
    """

    noise: float = 2.0
    """Largest noise in units of eps, >= 0; k of the paper."""
    step_size: float = 1.0
    """Length of the step in units of eps, > 0."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in [0, 1)."""
    batch_norm: Literal["eval", "train"] = "eval"
    """Whether BatchNorm normalises by its running statistics (eval) or the batch's (train) while crafting."""

    def __post_init__(self) -> None:
        check_interval("[0, 1)", label_smoothing=self.label_smoothing)
        check_at_least(0, noise=self.noise)
        check_above_zero(step_size=self.step_size)

    def adversarial_images(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Add noise, and take one step from there."""
        noisy = _scaled(threat, self.noise).random_start(x, rng)
        step = _scaled(threat, self.step_size)
        return craft(model, FGSM(), noisy, y, step, rng=rng, batch_norm=self.batch_norm)

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the mean cross-entropy on adversarial images."""
        return LossOutput(cross_entropy(model(x_adv), y, self.label_smoothing), adversarial=x_adv)

    def with_weaker_attack(self, factor: float) -> "NFGSM":
        """Return this loss with more noise, the authors' own remedy; a smaller step made collapses worse."""
        return replace(self, noise=max(self.noise / factor, 1.0))


def _scaled(threat: ThreatModel, factor: float) -> ThreatModel:
    """Return the threat model with a multiple of its radius, at most the largest that is valid."""
    return replace(threat, eps=min(factor * threat.eps, LARGEST_EPS[threat.norm]))
