"""DeepFool (Moosavi-Dezfooli et al. 2016)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.apgd_targeted import likeliest_wrong
from sparsemble.attacks.attack import attacks
from sparsemble.attacks.border import nearest_border
from sparsemble.attacks.minimum_norm import MinimumNorm, Nearest
from sparsemble.core.errors import InputError
from sparsemble.core.types import Classifier


@final
@attacks.register("deepfool")
@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimumNorm):
    """Steps to the nearest linearised border until the class changes; each image leaves the batch when it has.

    Source: Moosavi-Dezfooli et al. 2016, algorithm 2, in both norms. Departs: each step is the shortest one that
    stays in the box. The sum of the steps is overshot, as in the paper.
    """

    steps: int = 50
    """Steps at most, >= 1."""
    overshoot: float = 0.02
    """How much further than the border to go, as a share of the way, > 0."""
    candidates: int = 10
    """Classes whose borders are compared, the true one included, the likeliest on the clean image first, >= 2."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
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

        Passes, each image and step: 2 forward and candidates - 1 backward.
        """
        others = likeliest_wrong(nearest.clean_logits, nearest.y, self.candidates - 1)
        rows = nearest.open_rows()
        point = nearest.x[rows]
        total = torch.zeros_like(point)
        for _ in range(self.steps):
            if not len(rows):
                return
            border = nearest_border(model, point, nearest.y[rows], others[rows], nearest.norm)
            total = total + border.move_from(point, nearest.norm)
            point = (nearest.x[rows] + (1 + self.overshoot) * total).clamp(0, 1)
            with torch.no_grad():
                going = ~nearest.see_(rows, point, model(point))
            rows, point, total = rows[going], point[going], total[going]
