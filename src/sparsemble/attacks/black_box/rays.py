"""RayS: the nearest decision boundary along directions of plus and minus 1 (Chen & Gu 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from sparsemble.attacks.attack import Access, Attack, attacks
from sparsemble.attacks.black_box.query_oracle import QueryOracle, point_on_ray
from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.threat import Norm, ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels

FIRST_RADIUS = 1.0
"""Length of the first ray: the whole range of a pixel."""


@final
@attacks.register("rays")
@dataclass(frozen=True, kw_only=True)
class RayS(Attack):
    """Decision-based attack for linf; neither logits nor gradients are used, so neither can be masked.

    It flips the signs of halves, quarters, ... of the direction, and keeps each flip that brings the decision boundary
    nearer. Where no point of the ball is misclassified, the nearest misclassified one is projected into it.

    Source: Chen & Gu 2020, algorithms 2 and 3, with their first direction of ones. Departs: an image stops at its
    first misclassified point in the ball.
    """

    access: ClassVar[Access] = "labels"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    instead: ClassVar[Mapping[Norm, str]] = {"l2": "hop_skip_jump", "l1": "pointwise"}

    queries: int = 1000
    """Forward passes for each image at most, >= 1."""

    def __post_init__(self) -> None:
        check_at_least(1, queries=self.queries)
        self._set_label(f"rays{self.queries}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search along rays; `rng` is used only for images without a misclassified point."""
        oracle = QueryOracle.with_clean(model, x, y, threat, self.queries)
        pixels = x[0].numel()
        direction = x.new_ones(len(x), pixels)
        radius = torch.full_like(oracle.distance, FIRST_RADIUS)
        _try(oracle, oracle.open_rows(), direction, direction[oracle.open_rows()], radius)
        level = 0
        while len(oracle.open_rows()):
            blocks = min(2**level, pixels)
            for block in range(blocks):
                rows = oracle.open_rows()
                flipped = direction[rows]
                flipped[:, block * pixels // blocks : (block + 1) * pixels // blocks] *= -1
                _try(oracle, rows, direction, flipped, radius)
            level += 1
        return oracle.nearest_in_ball(rng)


def _try(
    oracle: QueryOracle,
    rows: Counts,
    direction: Float[Tensor, "A P"],
    tried: Float[Tensor, "B P"],
    radius: Float[Tensor, "A"],
) -> None:
    """Take over other directions for the images at `rows` where they are misclassified at the same radius."""
    if not len(rows):
        return
    rays = tried.view(-1, *oracle.x.shape[1:])
    misclassified = oracle.query(rows, point_on_ray(oracle.x[rows], rays, radius[rows]))
    hit = rows[misclassified]
    direction[hit] = tried[misclassified]
    radius[hit] = oracle.bisect(hit, rays[misclassified], radius[hit])
