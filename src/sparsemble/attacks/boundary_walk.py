"""FAB's walk along the border (Croce & Hein 2020, algorithm 1)."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from sparsemble.attacks.decision_boundary import nearest_border
from sparsemble.attacks.hyperplane import random_direction
from sparsemble.attacks.minimum_norm import Nearest
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images

SMALLEST = 1e-12

SEARCH_BACK_STEPS = 3
"""Steps of the last search, between the clean image and the point found."""


@final
@dataclass(frozen=True, kw_only=True)
class BoundaryWalk:
    """Settings of the walk."""

    steps: int
    alpha_max: float
    eta: float
    beta: float

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps = {self.steps} must be 1 or more")
        if not 0 <= self.alpha_max <= 1:
            raise InputError(f"alpha_max = {self.alpha_max:g} must lie between 0 and 1")
        if not self.eta >= 1:
            raise InputError(f"eta = {self.eta:g} must be 1 or more (1 ends on the border)")
        if not 0 < self.beta < 1:
            raise InputError(f"beta = {self.beta:g} must lie between 0 and 1")

    def __call__(self, model: Classifier, nearest: Nearest, others: Int[Tensor, "B J"], start: Images) -> None:
        """Walk from `start` along the borders with `others`, and then search back.

        Passes, each image and step: 2 forward and J backward; none once it is near enough.
        """
        rows = nearest.open_rows()
        point = start[rows]
        for _ in range(self.steps):
            if not len(rows):
                return
            point = self._move(model, nearest.x[rows], nearest, others[rows], point, rows)
            with torch.no_grad(), for_images(rows):
                logits = model(point)
            broken = nearest.see_(rows, point, logits).view(-1, 1, 1, 1)
            x = nearest.x[rows]
            point = torch.where(broken, x + self.beta * (point - x), point)
            unfinished = nearest.is_open()[rows]
            rows, point = rows[unfinished], point[unfinished]
        nearest.search_back_(model, SEARCH_BACK_STEPS)

    def _move(
        self,
        model: Classifier,
        x: Images,
        nearest: Nearest,
        others: Int[Tensor, "B J"],
        point: Images,
        rows: Int[Tensor, "B"],
    ) -> Images:
        """Overstep the nearest border, from the point and from the clean image, and mix the two."""
        with for_images(rows):
            border = nearest_border(model, point, nearest.y[rows], others, nearest.norm)
        here, there = border.move_from(point, nearest.norm), border.move_from(x, nearest.norm)
        threat = ThreatModel(norm=nearest.norm)
        step, back = threat.distance(point + here, point), threat.distance(x + there, x)
        bias = (step / (step + back).clamp_min(SMALLEST)).clamp_max(self.alpha_max).view(-1, 1, 1, 1)
        return ((1 - bias) * (point + self.eta * here) + bias * (x + self.eta * there)).clamp(0, 1)


def start_for(restart: int, nearest: Nearest, rng: Generator) -> Images:
    """Return where a walk starts: at the clean image, and later half as far away as the best point, or as `enough`."""
    if restart == 0:
        return nearest.x
    away = ThreatModel(norm=nearest.norm).distance(nearest.images, nearest.x)
    radius = away.clamp_max(nearest.enough) if nearest.enough else away
    way = random_direction(nearest.x, nearest.norm, rng)
    return (nearest.x + radius.view(-1, 1, 1, 1) / 2 * way).clamp(0, 1)
