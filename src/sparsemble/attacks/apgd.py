"""Auto-PGD (Croce & Hein 2020)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.apgd_core import APGDSearch, RowLoss, mean_logits, random_start_at_eps
from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.best_points import BestPoints
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
    """Gradient steps with momentum; the step size of each image is halved when its loss stops rising.

    Source: Croce & Hein 2020, algorithm 1, with the step sizes and starts of the authors' AutoAttack. Departs: a
    misclassified image takes no further passes (`stop_at_success`), one that is misclassified when clean is returned
    unchanged, and losses of a random model are averaged over the passes of `eot`, where the authors take the last.
    """

    steps: int = 100
    """Gradient steps, >= 1."""
    restarts: int = 1
    """Independent starts, >= 1; later ones only for images not yet misclassified."""
    loss: AttackLoss = CrossEntropy()
    """What the steps maximise."""
    eot: int = 1
    """Passes averaged at each point, for models with randomness; 1 for all others."""
    rho: float = 0.75
    """Fraction of the steps between two checkpoints that must raise the loss, else the step is halved."""
    stop_at_success: bool = True
    """Return the first misclassified point; off: continue to the highest loss."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        APGDSearch(steps=self.steps, eot=self.eot, rho=self.rho)
        if self.restarts < 1:
            raise InputError(f"restarts = {self.restarts} must be 1 or more")
        if not self.label:
            times = f"x{self.restarts}" if self.restarts > 1 else ""
            object.__setattr__(self, "label", f"apgd{self.steps}{times}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search from each start."""
        search = APGDSearch(steps=self.steps, eot=self.eot, rho=self.rho, stop_at_success=self.stop_at_success)
        clean_logits = mean_logits(model, x, self.eot)
        best = BestPoints.of_clean(x, clean_logits.argmax(1) != y)
        for _ in range(self.restarts):
            start = random_start_at_eps(x, threat, rng)
            rows = (~best.success if self.stop_at_success else torch.ones_like(best.success)).nonzero()[:, 0]
            if not len(rows):
                break
            loss = self._row_loss(clean_logits[rows], y[rows])
            with for_images(rows):
                points, _ = search(model, x[rows], y[rows], threat, start[rows], loss)
            best.improve_(rows, points.images, points.success, points.score)
        return best.images

    def _row_loss(self, clean_logits: Logits, y: Labels) -> RowLoss:
        return lambda logits, rows: self.loss(logits, clean_logits[rows], y[rows])
