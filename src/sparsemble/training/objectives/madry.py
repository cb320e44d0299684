"""PGD adversarial training (Madry et al. 2018, eq. 2.1)."""

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Generator, nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.training.objective import LossOutput, Objective, craft, objectives


@final
@objectives.register("madry")
@dataclass(frozen=True, kw_only=True)
class Madry(Objective):
    """Cross-entropy on the worst nearby image.

    Source: Madry et al. 2018, eq. 2.1; EED main paper, eqs. 1-2. BatchNorm is in eval mode while crafting.
    """

    attack: Attack = PGD(steps=10, keep_best=False)
    """Finds the nearby image."""

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the mean cross-entropy on adversarial images."""
        x_adv = craft(model, self.attack, x, y, threat, rng=rng)
        return LossOutput(F.cross_entropy(model(x_adv), y), adversarial=x_adv)
