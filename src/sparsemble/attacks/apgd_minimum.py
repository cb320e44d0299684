"""Minimum-norm Auto-PGD: a search for the least radius at which it succeeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from sparsemble.attacks.apgd_core import APGDSearch, RowLoss
from sparsemble.attacks.apgd_targeted import TargetedDLR
from sparsemble.attacks.attack import SMALLEST, attacks, input_gradient, likeliest_wrong, random_direction
from sparsemble.attacks.decision_boundary import dual_norm
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.attacks.minimum_norm import MinimumNorm, NearestPoints
from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import LARGEST_EPS, Norm, ThreatModel, project
from sparsemble.core.types import Classifier, Counts, Images, PerImage

LINE_SEARCH_STEPS = 3
FIRST_RADIUS = 1.5
"""Of the first ball, in units of the distance to the linearised boundary."""
FALL = 0.8
"""After a success the radius falls to this fraction of the distance, or to the middle of the bracket if larger."""


@final
@attacks.register("apgd_minimum")
@dataclass(frozen=True, kw_only=True)
class APGDMinimum(MinimumNorm):
    """Runs APGD in balls of a radius that falls where it succeeds, and is bisected or doubled where it fails.

    In each ball, APGD on the margin starts from the nearest misclassified point, moved into the ball; where it fails,
    targeted APGD runs from random starts. A line search to the clean image follows at the end.

    Source: the runs are those of Croce & Hein 2020; to search over the radius turns them into the minimum-norm attacks
    that lead the ranking of Cina et al. 2025 (AttackBench). The start, the first radius and the order of radii are
    ours.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    instead: ClassVar[Mapping[Norm, str]] = {"l1": "fmn"}

    searches: int = 10
    """Balls in which an image is attacked, >= 1."""
    steps: int = 20
    """Gradient steps of each run, >= 1."""
    targets: int = 3
    """Wrong classes towards which targeted runs go, the likeliest on the clean image first, >= 0."""

    def __post_init__(self) -> None:
        check_at_least(1, searches=self.searches, steps=self.steps)
        check_at_least(0, targets=self.targets)
        self._complete(f"apgd_minimum{self.searches}x{self.steps}")

    def search(self, model: Classifier, nearest: NearestPoints, *, rng: Generator) -> None:
        """Search over the radius.

        Passes, each image and ball that fails: (targets + 1) (steps + 1) forward and (targets + 1) steps backward.
        """
        targets = likeliest_wrong(nearest.clean_logits, nearest.y, max(self.targets, 1))[:, : self.targets]
        failed = torch.zeros_like(nearest.distance)
        rows = nearest.open_rows()
        radius = torch.zeros_like(failed)
        radius[rows] = FIRST_RADIUS * _linear_distance(model, nearest, rows)
        for _ in range(self.searches):
            directions = [random_direction(nearest.x, nearest.norm, rng) for _ in range(targets.shape[1] + 1)]
            rows = nearest.open_rows()
            if not len(rows):
                return
            distance = nearest.distance
            shorter = torch.maximum((failed + distance) / 2, FALL * distance)
            radius = torch.where(nearest.success, shorter, radius).clamp(nearest.stop_distance, LARGEST_EPS["l1"])
            self._attack_balls(model, nearest, rows, radius, targets, directions)
            missed = nearest.distance > radius * (1 + 1e-5)
            failed = torch.where(missed, radius, failed)
            radius = torch.where(missed, 2 * radius, radius)
        nearest.line_search_(model, LINE_SEARCH_STEPS)

    def _attack_balls(
        self,
        model: Classifier,
        nearest: NearestPoints,
        rows: Int[Tensor, "R"],
        radius: PerImage,
        targets: Int[Tensor, "B J"],
        directions: list[Images],
    ) -> None:
        """Run APGD in the balls of some images until each has a misclassified point in its own."""
        size = radius.view(-1, 1, 1, 1)
        far = nearest.distance.clone()
        for run, direction in enumerate(directions):
            start = nearest.x + size * direction
            if not run:
                start = torch.where(nearest.success.view(-1, 1, 1, 1), nearest.images, start)
            rows = rows[nearest.distance[rows] >= far[rows]]
            if not len(rows):
                return
            x, y, within = nearest.x[rows], nearest.y[rows], radius[rows]
            loss: RowLoss = TargetedDLR(targets[rows, run - 1], y) if run else _margin_loss(y)
            begin = project(start[rows], x, within, nearest.norm)
            threat = ThreatModel(norm=nearest.norm)
            with for_images(rows):
                best, margin = APGDSearch(steps=self.steps)(model, x, y, threat, begin, loss, radius=within)
            nearest.improve_(rows, best.images, best.success, margin)


def _margin_loss(y: Tensor) -> RowLoss:
    return lambda logits, rows: margin_of(logits, y[rows])


def _linear_distance(model: Classifier, nearest: NearestPoints, rows: Counts) -> PerImage:
    """Return the distance to the linearised boundary of the margin; one forward and one backward pass an image."""
    leaf = nearest.x[rows].clone().requires_grad_()
    with for_images(rows):
        margin = margin_of(model(leaf), nearest.y[rows])
    slope = dual_norm(input_gradient(margin, leaf), nearest.norm)
    return margin.detach().abs() / slope.clamp_min(SMALLEST)
