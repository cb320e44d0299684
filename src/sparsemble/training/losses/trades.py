"""TRADES (Zhang et al. 2019)."""

from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.losses.kl import KL
from sparsemble.attacks.pgd import PGD
from sparsemble.core.argument_checks import check_at_least, check_interval
from sparsemble.core.types import Images, Labels
from sparsemble.training.loss import CraftedLoss, LossOutput, at_least_float32, cross_entropy, training_losses


@final
@training_losses.register("trades")
@dataclass(frozen=True, kw_only=True)
class TRADES(CraftedLoss):
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

    def __post_init__(self) -> None:
        check_interval("[0, 1)", label_smoothing=self.label_smoothing)
        check_at_least(0, beta=self.beta)

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the mean loss; gradients flow through both predictions."""
        clean, adversarial = at_least_float32(model(x)), at_least_float32(model(x_adv))
        standard = cross_entropy(clean, y, self.label_smoothing)
        divergence = KL()(adversarial, clean, y).mean()
        terms = {"standard": standard.detach(), "divergence": divergence.detach()}
        return LossOutput(standard + self.beta * divergence, terms, x_adv)
