"""FAB, the fast adaptive boundary attack (Croce & Hein 2020)."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from sparsemble.attacks.attack import SMALLEST, attacks, likeliest_wrong, random_direction
from sparsemble.attacks.decision_boundary import nearest_boundary_at
from sparsemble.attacks.minimum_norm import MinimumNorm, NearestPoints
from sparsemble.core.argument_checks import check_at_least, check_interval
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Images

LINE_SEARCH_STEPS = 3
"""Steps of the last search, between the clean image and the misclassified point."""


@dataclass(frozen=True, kw_only=True)
class FABAttack(MinimumNorm):
    """What FAB and targeted FAB share: the settings of algorithm 1, and its runs."""

    steps: int = 100
    """Steps from each start, >= 1."""
    restarts: int = 1
    """Starts (for each target), >= 1."""
    alpha_max: float = 0.1
    """Largest weight of the step that starts at the clean image, in [0, 1]."""
    eta: float = 1.05
    """Length of a step, the linearised boundary being at 1; >= 1."""
    beta: float = 0.9
    """Where to continue from a misclassified point, the clean image being at 0; in (0, 1)."""

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, restarts=self.restarts, eta=self.eta)
        check_interval("[0, 1]", alpha_max=self.alpha_max)
        check_interval("(0, 1)", beta=self.beta)

    def _run(self, model: Classifier, nearest: NearestPoints, others: Int[Tensor, "B J"], start: Images) -> None:
        """Run from `start` along the boundaries with `others`, and end with a line search.

        Passes, each image and step: 2 forward and J backward; none once it is near enough.
        """
        rows = nearest.open_rows()
        point = start[rows]
        for _ in range(self.steps):
            if not len(rows):
                return
            point = self._step(model, nearest, rows, others[rows], point)
            with torch.no_grad(), for_images(rows):
                logits = model(point)
            misclassified = nearest.update_(rows, point, logits).view(-1, 1, 1, 1)
            x = nearest.x[rows]
            point = torch.where(misclassified, x + self.beta * (point - x), point)
            unfinished = nearest.is_open()[rows]
            rows, point = rows[unfinished], point[unfinished]
        nearest.line_search_(model, LINE_SEARCH_STEPS)

    def _step(
        self, model: Classifier, nearest: NearestPoints, rows: Counts, others: Int[Tensor, "R J"], point: Images
    ) -> Images:
        """Overstep the nearest boundary, from the point and from the clean image, and mix the two."""
        x, norm = nearest.x[rows], nearest.norm
        with for_images(rows):
            boundary = nearest_boundary_at(model, point, nearest.y[rows], others, norm)
        from_point, from_x = boundary.move_from(point, norm), boundary.move_from(x, norm)
        threat = ThreatModel(norm=norm)
        step, back = threat.distance(point + from_point, point), threat.distance(x + from_x, x)
        bias = (step / (step + back).clamp_min(SMALLEST)).clamp_max(self.alpha_max).view(-1, 1, 1, 1)
        return ((1 - bias) * (point + self.eta * from_point) + bias * (x + self.eta * from_x)).clamp(0, 1)


@final
@attacks.register("fab")
@dataclass(frozen=True, kw_only=True)
class FAB(FABAttack):
    """Steps to the nearest linearised decision boundary, biased towards the clean image.

    Source: Croce & Hein 2020 (Minimally distorted adversarial examples), algorithm 1, with the starts of the authors'
    AutoAttack: the first at the clean image, later ones at random points half as far away as the best point, or as
    the boundary of the ball. Each step takes K - 1 backward passes; for many classes see `fab_targeted`. Departs:
    where a distance is small enough (`stop_distance`, the ball's radius in `perturb`), an image takes no further
    passes.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._complete(f"fab{self.steps}" + f"x{self.restarts}" * (self.restarts > 1))

    def search(self, model: Classifier, nearest: NearestPoints, *, rng: Generator) -> None:
        """Search from each start."""
        others = likeliest_wrong(nearest.clean_logits, nearest.y, nearest.clean_logits.shape[1] - 1)
        for restart in range(self.restarts):
            self._run(model, nearest, others, fab_start(restart, nearest, rng))


def fab_start(restart: int, nearest: NearestPoints, rng: Generator) -> Images:
    """Return the first points of a run: the clean images, later half as far away as the best point or `stop_distance`.

    Args:
        restart: number of the run, from 0.
        nearest: the record so far.
        rng: source of random draws.
    """
    if restart == 0:
        return nearest.x
    radius = ThreatModel(norm=nearest.norm).distance(nearest.images, nearest.x)
    radius = radius.clamp_max(nearest.stop_distance) if nearest.stop_distance else radius
    direction = random_direction(nearest.x, nearest.norm, rng)
    return (nearest.x + radius.view(-1, 1, 1, 1) / 2 * direction).clamp(0, 1)
