"""Fast gradient sign method (Goodfellow et al. 2015)."""

from dataclasses import dataclass
from typing import final

from torch import Generator

from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.loss import AttackLoss
from sparsemble.attacks.pgd import PGD
from sparsemble.core.argument_checks import check_above_zero
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels


@final
@attacks.register("fgsm")
@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One steepest step along the gradient of the loss.

    Source: Goodfellow et al. 2015, section 4, for linf; for l2 the step goes along the normalised gradient. With
    `random_start`, Wong et al. 2020 (there with a step of 1.25). Weak: for training, and for the check that stronger
    attacks succeed on more images.
    """

    step_size: float = 1.0
    """Length of the step in units of eps, > 0."""
    random_start: bool = False
    """Start at a random allowed image, not at the clean one."""
    loss: AttackLoss = CrossEntropy()
    """What the step maximises."""

    def __post_init__(self) -> None:
        check_above_zero(step_size=self.step_size)
        self._set_label("fgsm_rs" if self.random_start else "fgsm")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Step once: one forward and one backward pass."""
        step = PGD(steps=1, step_size=self.step_size, random_start=self.random_start, keep_best=False, loss=self.loss)
        return step.perturb(model, x, y, threat, rng=rng)
