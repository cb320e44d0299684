"""TRADES (Zhang et al. 2019)."""

from dataclasses import dataclass
from typing import Literal, final

from torch import Generator, nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.losses.kl import KL
from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.training.loss import (
    AdversarialLoss,
    LossOutput,
    at_least_float32,
    check_label_smoothing,
    craft,
    cross_entropy,
    training_losses,
)


@final
@training_losses.register("trades")
@dataclass(frozen=True, kw_only=True)
class TRADES(AdversarialLoss):
    """Cross-entropy on clean images plus beta times the KL divergence between clean and adversarial predictions.

    CE(f(x), y) + beta KL(p(x) || p(x_adv)), where x_adv maximises the same divergence.

    Source: Zhang et al. 2019, eq. 5 and algorithm 1. The attack starts at x + 0.001 N(0, 1), as there: the divergence
    has no gradient at x.
    """

    beta: float = 6.0
    """Weight of the divergence, >= 0; 1 / lambda of the paper."""
    attack: Attack = PGD(steps=10, start_noise=0.001, loss=KL(), keep_best=False)
    """Crafts the adversarial images."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in [0, 1)."""
    batch_norm: Literal["eval", "train"] = "eval"
    """Whether BatchNorm normalises by its running statistics (eval) or the batch's (train) while crafting."""

    def __post_init__(self) -> None:
        check_label_smoothing(self.label_smoothing)
        if not self.beta >= 0:
            raise InputError(f"beta = {self.beta:g} must be 0 or more")

    def adversarial_images(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Maximise the divergence from the clean prediction."""
        return craft(model, self.attack, x, y, threat, rng=rng, batch_norm=self.batch_norm)

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the mean loss; gradients flow through both predictions."""
        clean, adversarial = at_least_float32(model(x)), at_least_float32(model(x_adv))
        standard = cross_entropy(clean, y, self.label_smoothing)
        divergence = KL()(adversarial, clean, y).mean()
        terms = {"standard": standard.detach(), "divergence": divergence.detach()}
        return LossOutput(standard + self.beta * divergence, terms, x_adv)
