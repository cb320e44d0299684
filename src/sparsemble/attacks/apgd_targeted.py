"""Targeted Auto-PGD (Croce & Hein 2020)."""

from dataclasses import dataclass
from typing import final

from torch import Generator

from sparsemble.attacks.apgd_core import APGDAttack, plain_logits, random_start_at_eps
from sparsemble.attacks.attack import SMALLEST, attacks, likeliest_wrong
from sparsemble.attacks.best_points import BestPoints
from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels, Logits, PerImage


@final
@attacks.register("apgd_targeted")
@dataclass(frozen=True, kw_only=True)
class APGDTargeted(APGDAttack):
    """APGD on the targeted difference of logits ratio, for each of the likeliest wrong classes in turn.

    Source: Croce & Hein 2020, eq. 7 and appendix; settings as in the authors' AutoAttack. With K classes there are
    min(targets, K - 1) targets; for K < 4, where the ratio is not defined, it maximises the difference between the
    target's logit and the true one. Departs: as `apgd`; the classes are ranked once, on the clean image.
    """

    targets: int = 9
    """Wrong classes used as targets, the likeliest on the clean image first, >= 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, targets=self.targets)
        self._set_label(f"apgd{self.steps}t{self.targets}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search towards each target."""
        search, clean_logits = self._search(), plain_logits(model, x)
        best = BestPoints.of_clean(x, clean_logits.argmax(1) != y)
        for target in likeliest_wrong(clean_logits, y, self.targets).unbind(1):
            for _ in range(self.restarts):
                start = random_start_at_eps(x, threat, rng)
                rows = self._rows(best)
                if not len(rows):
                    return best.images
                loss = TargetedDLR(target[rows], y[rows])
                with for_images(rows):
                    points, margin = search(model, x[rows], y[rows], threat, start[rows], loss)
                # Ratios towards different targets cannot be compared; margins can.
                best.improve_(rows, points.images, points.success, margin)
        return best.images


@final
@dataclass(frozen=True)
class TargetedDLR:
    """The targeted difference of logits ratio of some images of a batch, as an `apgd_core.RowLoss`.

    Positive exactly where the target's logit exceeds the true one; their plain difference if K < 4.

    Source: Croce & Hein 2020, eq. 7.
    """

    target: Labels
    y: Labels

    def __call__(self, logits: Logits, rows: Counts) -> PerImage:
        """Return the ratio of each image."""
        ahead = (logits.gather(1, self.target[rows, None]) - logits.gather(1, self.y[rows, None]))[:, 0]
        if logits.shape[1] < 4:
            return ahead
        first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
        return ahead / (first - (third + fourth) / 2 + SMALLEST)
