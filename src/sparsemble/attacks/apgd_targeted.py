"""Targeted Auto-PGD (Croce & Hein 2020)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.apgd_core import APGDSearch, mean_logits, random_start_at_eps
from sparsemble.attacks.attack import SMALLEST, Attack, attacks, likeliest_wrong
from sparsemble.attacks.best_points import BestPoints
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels, Logits, PerImage


@final
@attacks.register("apgd_targeted")
@dataclass(frozen=True, kw_only=True)
class APGDTargeted(Attack):
    """APGD on the targeted difference of logits ratio, for each of the likeliest wrong classes in turn.

    Source: Croce & Hein 2020, eq. 7 and appendix; settings as in the authors' AutoAttack. With K classes there are
    min(targets, K - 1) targets; for K < 4, where the ratio is not defined, it maximises the difference between the
    target's logit and the true one. Departs: as `apgd`; the classes are ranked once, on the clean image.
    """

    steps: int = 100
    """Gradient steps for each target, >= 1."""
    targets: int = 9
    """Wrong classes used as targets, the likeliest on the clean image first, >= 1."""
    restarts: int = 1
    """Independent starts for each target, >= 1."""
    eot: int = 1
    """Passes averaged at each point, for models with randomness; 1 for all others."""
    rho: float = 0.75
    """Fraction of the steps between two checkpoints that must raise the loss, else the step is halved."""
    stop_at_success: bool = True
    """Return the first misclassified point; off: continue to the largest margin."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        APGDSearch(steps=self.steps, eot=self.eot, rho=self.rho)
        if self.restarts < 1 or self.targets < 1:
            raise InputError(f"restarts = {self.restarts} and targets = {self.targets} must be 1 or more")
        if not self.label:
            object.__setattr__(self, "label", f"apgd{self.steps}t{self.targets}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search towards each target."""
        search = APGDSearch(steps=self.steps, eot=self.eot, rho=self.rho, stop_at_success=self.stop_at_success)
        clean_logits = mean_logits(model, x, self.eot)
        best = BestPoints.of_clean(x, clean_logits.argmax(1) != y)
        for target in likeliest_wrong(clean_logits, y, self.targets).unbind(1):
            for _ in range(self.restarts):
                start = random_start_at_eps(x, threat, rng)
                rows = (~best.success if self.stop_at_success else torch.ones_like(best.success)).nonzero()[:, 0]
                if not len(rows):
                    return best.images
                loss = TargetedDLR(target[rows], y[rows])
                with for_images(rows):
                    points, margin = search(model, x[rows], y[rows], threat, start[rows], loss)
                # Ratios towards different targets cannot be compared; margins can.
                best.improve_(rows, points.images, points.success, margin)
        return best.images


def targeted_dlr(logits: Logits, y: Labels, target: Labels) -> PerImage:
    """Return the targeted difference of logits ratio (Croce & Hein 2020, eq. 7).

    Args:
        logits: (B, K).
        y: (B) true classes.
        target: (B) wrong classes.

    Returns:
        (B) values, positive exactly where the target's logit exceeds the true one; their plain difference if K < 4.
    """
    ahead = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]
    if logits.shape[1] < 4:
        return ahead
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    return ahead / (first - (third + fourth) / 2 + SMALLEST)


@final
@dataclass(frozen=True)
class TargetedDLR:
    """`targeted_dlr` of some images of a batch, as an `apgd_core.RowLoss`."""

    target: Labels
    y: Labels

    def __call__(self, logits: Logits, rows: Counts) -> PerImage:
        """Return the ratio of each image."""
        return targeted_dlr(logits, self.y[rows], self.target[rows])
