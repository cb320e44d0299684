"""DeepFool (Moosavi-Dezfooli et al. 2016)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import attacks, likeliest_wrong
from sparsemble.attacks.decision_boundary import nearest_boundary
from sparsemble.attacks.minimum_norm import MinimumNorm, NearestPoints
from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.pass_counter import for_images
from sparsemble.core.types import Classifier, Counts, Images, Logits


@final
@attacks.register("deepfool")
@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimumNorm):
    """Steps to the nearest linearised decision boundary until the class changes.

    Source: Moosavi-Dezfooli et al. 2016, algorithm 2, in both norms. Departs: each step is the shortest one that
    stays in the box; after the first step only the boundaries that were nearest in it are compared. The sum of the
    steps is overshot, as in the paper. Misclassified images leave the batch.

    Alias `deepfool_l2`: in l2, within the same eps, where the threat model is linf, too. That ball is so small a part
    of the one in linf that few images are misclassified.
    """

    steps: int = 50
    """Steps at most, >= 1."""
    overshoot: float = 0.02
    """Length beyond the boundary, as a fraction of the sum of the steps, > 0: on it no class leads."""
    candidates: int = 10
    """Classes that are compared, the true one included, the likeliest on the clean image first, >= 2."""
    followed: int = 3
    """Boundaries compared after the first step: those that were nearest in it, >= 1."""

    def __post_init__(self) -> None:
        check_at_least(1, followed=self.followed, steps=self.steps)
        check_at_least(2, candidates=self.candidates)
        check_above_zero(overshoot=self.overshoot)
        self._complete(f"deepfool{self.steps}")

    def search(self, model: Classifier, nearest: NearestPoints, *, rng: Generator) -> None:
        """Step until misclassified.

        Passes, each image: 1 forward and candidates - 1 backward for the first step, at most 2 forward and `followed`
        backward for each of the others, and 1 forward at the last point.
        """
        others = likeliest_wrong(nearest.clean_logits, nearest.y, self.candidates - 1)
        rows = nearest.open_rows()
        total = torch.zeros_like(nearest.x[rows])
        others = others[rows]
        leaf, logits = _forward(model, nearest.x[rows], rows)
        for _ in range(self.steps):
            if not len(rows):
                return
            boundary, distances = nearest_boundary(leaf, logits, nearest.y[rows], others, nearest.norm)
            if others.shape[1] > self.followed:
                others = others.gather(1, distances.topk(self.followed, largest=False).indices)
            total = total + boundary.move_from(leaf.detach(), nearest.norm)
            point = (nearest.x[rows] + (1 + self.overshoot) * total).clamp(0, 1)
            leaf, logits = _forward(model, point, rows)
            going = ~nearest.update_(rows, point, logits.detach())
            if not bool(going.all()):
                rows, total, others = rows[going], total[going], others[going]
                # Backward passes through images that are done cost more than one more forward pass without them.
                leaf, logits = _forward(model, point[going], rows) if len(rows) else (leaf, logits)


attacks.alias("deepfool_l2", "deepfool", norm="l2", label="deepfool_l2")


def _forward(model: Classifier, point: Images, rows: Counts) -> tuple[Images, Logits]:
    """Return a copy of the point that requires a gradient, and its logits."""
    leaf = point.detach().requires_grad_()
    with for_images(rows):
        return leaf, model(leaf)
