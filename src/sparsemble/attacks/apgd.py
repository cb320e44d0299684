"""Auto-PGD (Croce & Hein 2020)."""

from dataclasses import dataclass
from typing import final

from torch import Generator

from sparsemble.attacks.apgd_core import APGDAttack, RowLoss, plain_logits, random_start_at_eps
from sparsemble.attacks.attack import attacks
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.loss import AttackLoss
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, Logits


@final
@attacks.register("apgd")
@dataclass(frozen=True, kw_only=True)
class APGD(APGDAttack):
    """Gradient steps with momentum; the step size of each image is halved when its loss stops rising.

    Source: Croce & Hein 2020, algorithm 1, with the step sizes and starts of the authors' AutoAttack; in l1, Croce &
    Hein 2021, algorithm 1, with sparse steps and three radii. Departs: a misclassified image takes no further passes
    (`stop_at_success`), and one that is misclassified when clean is returned unchanged. For random models see `eot`.
    """

    loss: AttackLoss = CrossEntropy()
    """What the steps maximise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_label(f"apgd{self.steps}" + f"x{self.restarts}" * (self.restarts > 1))

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search from each start."""
        search, clean_logits = self._search(), plain_logits(model, x)
        best = BestPoints.of_clean(x, clean_logits.argmax(1) != y)
        for _ in range(self.restarts):
            start = random_start_at_eps(x, threat, rng)
            rows = self._rows(best)
            if not len(rows):
                break
            loss = self._row_loss(clean_logits[rows], y[rows])
            with for_images(rows):
                points, _ = search(model, x[rows], y[rows], threat, start[rows], loss)
            best.improve_(rows, points.images, points.success, points.score)
        return best.images

    def _row_loss(self, clean_logits: Logits, y: Labels) -> RowLoss:
        return lambda logits, rows: self.loss(logits, clean_logits[rows], y[rows])
