"""Auto-PGD (Croce & Hein 2020)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.apgd_core import Ascent, Outcome, RowLoss, mean_logits, start_at_edge
from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.loss import AttackLoss
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, Logits


@final
@attacks.register("apgd")
@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Gradient steps with momentum; each image halves its step where the loss stops rising.

    Source: Croce & Hein 2020, algorithm 1, with the step sizes and starts of the authors' AutoAttack. Departs: an
    image that is broken takes no further passes (`stop_at_success`), one that is misclassified as it is stays as it
    is, and losses of a random model are averaged over the passes of `eot`, where the authors take the last.
    """

    steps: int = 100
    """Gradient steps, >= 1."""
    restarts: int = 1
    """Independent starts, >= 1; later ones only for images not broken yet."""
    loss: AttackLoss = CrossEntropy()
    """What the steps climb."""
    eot: int = 1
    """Passes averaged at each point, for models that answer at random; 1 for all others."""
    rho: float = 0.75
    """Share of the steps between two checkpoints that must raise the loss, else the step is halved."""
    stop_at_success: bool = True
    """Return the first misclassified point; off: go on to the highest loss."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        Ascent(steps=self.steps, eot=self.eot, rho=self.rho)
        if self.restarts < 1:
            raise InputError(f"restarts = {self.restarts} must be 1 or more")
        if not self.label:
            times = f"x{self.restarts}" if self.restarts > 1 else ""
            object.__setattr__(self, "label", f"apgd{self.steps}{times}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Walk from each start."""
        ascent = Ascent(steps=self.steps, eot=self.eot, rho=self.rho, stop_at_success=self.stop_at_success)
        clean_logits = mean_logits(model, x, self.eot)
        found = Outcome.nothing_yet(x)
        found.broken = clean_logits.argmax(1) != y
        for _ in range(self.restarts):
            start = start_at_edge(x, threat, rng)
            rows = (~found.broken if self.stop_at_success else torch.ones_like(found.broken)).nonzero()[:, 0]
            if not len(rows):
                break
            loss = self._climbed(clean_logits[rows], y[rows])
            with for_images(rows):
                walked = ascent(model, x[rows], y[rows], threat, start[rows], loss)
            found.improve_(rows, walked)
        return found.images

    def _climbed(self, clean_logits: Logits, y: Labels) -> RowLoss:
        return lambda logits, rows: self.loss(logits, clean_logits[rows], y[rows])
