"""DeepFool (Moosavi-Dezfooli et al. 2016)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.apgd_targeted import likeliest_wrong
from sparsemble.attacks.attack import attacks
from sparsemble.attacks.decision_boundary import nearest_of
from sparsemble.attacks.minimum_norm import MinimumNorm, Nearest
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.types import Classifier, Counts, Images, Logits


@final
@attacks.register("deepfool")
@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimumNorm):
    """Steps to the nearest linearised border until the class changes; each image leaves the batch when it has.

    Source: Moosavi-Dezfooli et al. 2016, algorithm 2, in both norms. Departs: each step is the shortest one that
    stays in the box; after the first step only the borders that were nearest in it are compared. The sum of the steps
    is overshot, as in the paper.
    """

    steps: int = 50
    """Steps at most, >= 1."""
    overshoot: float = 0.02
    """How much further than the border to go, as a share of the way, > 0."""
    candidates: int = 10
    """Classes whose borders are compared, the true one included, the likeliest on the clean image first, >= 2."""
    followed: int = 3
    """Borders compared after the first step: those that were nearest in it, >= 1."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if self.followed < 1:
            raise InputError(f"followed = {self.followed} must be 1 or more")
        if self.steps < 1:
            raise InputError(f"steps = {self.steps} must be 1 or more")
        if not self.overshoot > 0:
            raise InputError(f"overshoot = {self.overshoot:g} must be above 0: on the border itself nothing is decided")
        if self.candidates < 2:
            raise InputError(f"candidates = {self.candidates} must be 2 or more: the true class and a wrong one")
        if not self.label:
            object.__setattr__(self, "label", f"deepfool{self.steps}")

    def approach(self, model: Classifier, nearest: Nearest, *, rng: Generator) -> None:
        """Step until misclassified.

        Passes, each image: 1 forward and candidates - 1 backward for the first step, at most 2 forward and `followed`
        backward for each of the others, and 1 forward to judge the last.
        """
        others = likeliest_wrong(nearest.clean_logits, nearest.y, self.candidates - 1)
        rows = nearest.open_rows()
        total = torch.zeros_like(nearest.x[rows])
        others = others[rows]
        leaf, logits = looked_at(model, nearest.x[rows], rows)
        for _ in range(self.steps):
            if not len(rows):
                return
            border, distances = nearest_of(leaf, logits, nearest.y[rows], others, nearest.norm)
            if others.shape[1] > self.followed:
                others = others.gather(1, distances.topk(self.followed, largest=False).indices)
            total = total + border.move_from(leaf.detach(), nearest.norm)
            point = (nearest.x[rows] + (1 + self.overshoot) * total).clamp(0, 1)
            leaf, logits = looked_at(model, point, rows)
            going = ~nearest.see_(rows, point, logits.detach())
            if not bool(going.all()):
                rows, total, others = rows[going], total[going], others[going]
                # Backward passes through images that are done cost more than one more forward pass without them.
                leaf, logits = looked_at(model, point[going], rows) if len(rows) else (leaf, logits)


def looked_at(model: Classifier, point: Images, rows: Counts) -> tuple[Images, Logits]:
    """Return a point that wants a gradient, and its logits."""
    leaf = point.detach().requires_grad_()
    with for_images(rows):
        return leaf, model(leaf)
