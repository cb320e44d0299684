"""HopSkipJump: gradients at the decision boundary, estimated from predicted classes (Chen et al. 2020)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from sparsemble.attacks.attack import Access, Attack, attacks
from sparsemble.attacks.black_box.query_oracle import QueryOracle, point_on_ray
from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.threat import Norm, ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels, PerImage

FIRST_PROBES = 100
"""Points queried for the first gradient; later ones use this many times the root of the iteration."""
FIRST_PROBE_DISTANCE = 0.1
"""Distance of the first probes from the decision boundary."""
HALVINGS = 15


@final
@attacks.register("hop_skip_jump")
@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """Decision-based attack for l2; neither logits nor gradients are used, so neither can be masked.

    From the decision boundary it steps along an estimate of the gradient and searches back to the boundary, until the
    queries are used up. Where no point of the ball is misclassified, the nearest misclassified one is projected into
    it.

    Source: Chen et al. 2020, algorithms 1 and 2, for l2. Departs: the noise is the same for all images of a batch, so
    that no image's result depends on the others; the bisection ends at 1/1000 of the ray; an image stops at its first
    misclassified point in the ball, and when its queries are too few for another gradient.
    """

    access: ClassVar[Access] = "labels"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    instead: ClassVar[Mapping[Norm, str]] = {"linf": "rays", "l1": "pointwise"}

    queries: int = 1000
    """Forward passes for each image at most, >= 1."""

    def __post_init__(self) -> None:
        check_at_least(1, queries=self.queries)
        self._set_label(f"hop_skip_jump{self.queries}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search along the decision boundary."""
        oracle = QueryOracle.with_clean(model, x, y, threat, self.queries)
        oracle.draw_first_points(rng)
        iteration = 1
        while True:
            probes = int(FIRST_PROBES * math.sqrt(iteration))
            rows = oracle.open_rows()
            affordable = oracle.queries - oracle.used[rows] > probes
            rows = rows[oracle.distance[rows].isfinite() & affordable]
            if not len(rows):
                return oracle.nearest_in_ball(rng)
            point, distance = oracle.images[rows], oracle.distance[rows]
            noise = _unit_noise(x, probes, rng)
            first = torch.full_like(distance, FIRST_PROBE_DISTANCE)
            probe_distance = first if iteration == 1 else distance / point[0].numel()
            gradient = _estimate_gradient(oracle, rows, point, noise, probe_distance)
            _step(oracle, rows, point, gradient, distance / math.sqrt(iteration))
            iteration += 1


def _unit_noise(x: Images, draws: int, rng: Generator) -> Float[Tensor, "N C H W"]:
    noise = torch.randn((draws, *x.shape[1:]), generator=rng, device=x.device, dtype=x.dtype)
    return ThreatModel(norm="l2").steepest(noise)


def _estimate_gradient(
    oracle: QueryOracle, rows: Counts, point: Images, noise: Float[Tensor, "N C H W"], probe_distance: PerImage
) -> Images:
    """Return the unit vector that points to the misclassified side, from predictions around the point."""
    probes = (point[:, None] + probe_distance.view(-1, 1, 1, 1, 1) * noise).clamp(0, 1)
    sign = _centred(oracle.query_many(rows, probes))
    moved = probes - point[:, None]  # the part of the noise inside the box
    return ThreatModel(norm="l2").steepest((sign.view(*sign.shape, 1, 1, 1) * moved).mean(1))


def _centred(misclassified: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Return +1 and -1 minus their mean, which lowers the variance; without the mean where all are the same."""
    sign = 2.0 * misclassified - 1.0
    mean = sign.mean(1, keepdim=True)
    return torch.where(mean.abs() < 1, sign - mean, sign)


def _step(oracle: QueryOracle, rows: Counts, point: Images, gradient: Images, length: PerImage) -> None:
    """Step along the gradient, halving the step until misclassified, and search back to the decision boundary."""
    waiting = torch.arange(len(rows), device=rows.device)
    landed: list[tuple[Counts, Images]] = []
    for _ in range(HALVINGS):
        going = oracle.still_open(rows[waiting])
        waiting, length = waiting[going], length[going]
        if not len(waiting):
            break
        points = point_on_ray(point[waiting], gradient[waiting], length)
        misclassified = oracle.query(rows[waiting], points)
        landed.append((waiting[misclassified], points[misclassified]))
        waiting, length = waiting[~misclassified], length[~misclassified] / 2
    for which, points in landed:
        if len(which):
            direction = points - oracle.x[rows[which]]
            oracle.bisect(rows[which], direction, torch.ones_like(oracle.distance[rows[which]]))
