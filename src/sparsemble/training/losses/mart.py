"""MART: misclassification-aware adversarial training (Wang et al. 2020)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.losses.kl import KL
from sparsemble.attacks.pgd import PGD
from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.types import Images, Labels, Logits
from sparsemble.training.loss import CraftedLoss, LossOutput, at_least_float32, training_losses


@final
@training_losses.register("mart")
@dataclass(frozen=True, kw_only=True)
class MART(CraftedLoss):
    """Boosted cross-entropy on adversarial images, plus a divergence weighted by the error on clean images.

    BCE(p(x_adv), y) + weight KL(p(x) || p(x_adv)) (1 - p_y(x)), with
    BCE(p, y) = -log p_y - log(1 - max_{c != y} p_c).

    Source: Wang et al. 2020, section 3 (the MART loss). Labels are not smoothed: BCE's second half has no soft form.
    The search starts at x + 0.001 N(0, 1), as in the authors' code. Departs: 1 - max p is the sum of the other
    probabilities, in logarithms, where their code adds constants.
    """

    weight: float = 5.0
    """Weight of the divergence, >= 0; lambda of the paper."""
    attack: Attack = PGD(steps=10, start_noise=0.001, keep_best=False)
    """Crafts the adversarial images."""

    def __post_init__(self) -> None:
        check_at_least(0, weight=self.weight)

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the mean loss; gradients flow through both predictions and the weights of the images."""
        adversarial, clean = at_least_float32(model(x_adv)), at_least_float32(model(x))
        boosted = boosted_cross_entropy(adversarial, y)
        error = 1 - clean.softmax(1).gather(1, y[:, None])[:, 0]
        divergence = (KL()(adversarial, clean, y) * error).mean()
        terms = {"boosted": boosted.detach(), "divergence": divergence.detach()}
        return LossOutput(boosted + self.weight * divergence, terms, x_adv)


def boosted_cross_entropy(logits: Logits, y: Labels) -> Tensor:
    """Return the mean of -log p_y - log(1 - max_{c != y} p_c) over images."""
    own = logits.gather(1, y[:, None])[:, 0]
    rival = logits.scatter(1, y[:, None], -float("inf")).argmax(1, keepdim=True)
    others = logits.scatter(1, rival, -float("inf")).logsumexp(1)
    return (2 * logits.logsumexp(1) - own - others).mean()
