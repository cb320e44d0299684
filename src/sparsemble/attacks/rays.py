"""RayS (Chen & Gu 2020): the nearest border along directions of plus and minus 1."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparsemble.attacks.query_oracle import Oracle, ray
from sparsemble.core.types import Counts

TOLERANCE = 1e-3
WHOLE_BOX = 1.0


def search_rays(oracle: Oracle) -> None:
    """Flip the signs of halves, quarters, ... of the direction, and keep each flip that brings the border nearer.

    Source: Chen & Gu 2020, algorithms 2 and 3, with their first direction of ones.
    """
    x, pixels = oracle.x, oracle.x[0].numel()
    way = x.new_ones(len(x), pixels)
    radius = torch.full_like(oracle.distance, WHOLE_BOX)
    _try(oracle, oracle.open_rows(), way, way[oracle.open_rows()], radius)
    level = 0
    while len(oracle.open_rows()):
        blocks = min(2**level, pixels)
        for block in range(blocks):
            rows = oracle.open_rows()
            flipped = way[rows]
            flipped[:, block * pixels // blocks : (block + 1) * pixels // blocks] *= -1
            _try(oracle, rows, way, flipped, radius)
        level += 1


def _try(
    oracle: Oracle,
    rows: Counts,
    way: Float[Tensor, "A P"],
    tried: Float[Tensor, "B P"],
    radius: Float[Tensor, "A"],
) -> None:
    """Take other directions over for the images at `rows` where they are misclassified no further away."""
    if not len(rows):
        return
    away = tried.view(-1, *oracle.x.shape[1:])
    broken = oracle.ask(rows, ray(oracle.x[rows], away, radius[rows]))
    hit = rows[broken]
    way[hit] = tried[broken]
    radius[hit] = oracle.bisect(hit, away[broken], radius[hit], TOLERANCE)
