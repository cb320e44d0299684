"""HopSkipJump (Chen et al. 2020): gradients of the border, estimated from answers alone."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from sparsemble.attacks.query_oracle import Oracle, ray
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Counts, Images, PerImage

FIRST_DRAWS = 100
"""Random images tried as the first misclassified one."""
FIRST_PROBES = 100
"""Points around the border asked for the first gradient; more later, with the root of the round."""
FIRST_REACH = 0.1
"""How far the first probes lie from the border."""
HALVINGS = 15
TOLERANCE = 1e-3


def search_border(oracle: Oracle, rng: Generator) -> None:
    """Go to the border, along its gradient, and back to it, until the questions run out.

    Source: Chen et al. 2020, algorithms 1 and 2, for l2. Departs: the noise is the same for all images of a batch, so
    that no image's result depends on the others; the search for the border stops at 1/1000 of the way; an image whose
    questions do not pay for another gradient stops.
    """
    _first_points(oracle, rng)
    turn = 1
    while True:
        probes = int(FIRST_PROBES * math.sqrt(turn))
        rows = oracle.open_rows()
        affordable = oracle.queries - oracle.spent[rows] > probes
        rows = rows[oracle.distance[rows].isfinite() & affordable]
        if not len(rows):
            return
        point, distance = oracle.images[rows], oracle.distance[rows]
        noise = _directions(oracle.x, probes, rng)
        reach = torch.full_like(distance, FIRST_REACH) if turn == 1 else distance / point[0].numel()
        way = _estimate(oracle, rows, point, noise, reach)
        _jump(oracle, rows, point, way, distance / math.sqrt(turn))
        turn += 1


def _first_points(oracle: Oracle, rng: Generator) -> None:
    shape = oracle.x.shape[1:]
    for _ in range(FIRST_DRAWS):
        draw = torch.rand(shape, generator=rng, device=oracle.x.device, dtype=oracle.x.dtype)
        rows = oracle.open_rows()
        rows = rows[oracle.distance[rows].isinf()]
        if not len(rows):
            break
        oracle.ask(rows, draw.expand(len(rows), *shape))
    _to_border(oracle, oracle.open_rows())


def _to_border(oracle: Oracle, rows: Counts) -> None:
    """Search between the clean image and the nearest misclassified point."""
    rows = rows[oracle.distance[rows].isfinite()]
    if len(rows):
        away = oracle.images[rows] - oracle.x[rows]
        oracle.bisect(rows, away, torch.ones_like(oracle.distance[rows]), TOLERANCE)


def _directions(x: Images, draws: int, rng: Generator) -> Float[Tensor, "N C H W"]:
    noise = torch.randn((draws, *x.shape[1:]), generator=rng, device=x.device, dtype=x.dtype)
    return ThreatModel(norm="l2").steepest(noise)


def _estimate(oracle: Oracle, rows: Counts, point: Images, noise: Float[Tensor, "N C H W"], reach: PerImage) -> Images:
    """Return the unit vector that points into the misclassified side, from the answers around the point."""
    probes = (point[:, None] + reach.view(-1, 1, 1, 1, 1) * noise).clamp(0, 1)
    sign = _centred(oracle.ask_around(rows, probes))
    moved = probes - point[:, None]  # what is left of the noise inside the box
    return ThreatModel(norm="l2").steepest((sign.view(*sign.shape, 1, 1, 1) * moved).mean(1))


def _centred(broken: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Return +1 and -1 less their mean, which lowers the variance; unless all are the same."""
    sign = 2.0 * broken - 1.0
    mean = sign.mean(1, keepdim=True)
    return torch.where(mean.abs() < 1, sign - mean, sign)


def _jump(oracle: Oracle, rows: Counts, point: Images, way: Images, length: PerImage) -> None:
    """Step along the gradient, half as far until misclassified, and go from there to the border."""
    waiting = torch.arange(len(rows), device=rows.device)
    landed: list[tuple[Counts, Images]] = []
    for _ in range(HALVINGS):
        going = oracle.still_open(rows[waiting])
        waiting, length = waiting[going], length[going]
        if not len(waiting):
            break
        there = ray(point[waiting], way[waiting], length)
        broken = oracle.ask(rows[waiting], there)
        landed.append((waiting[broken], there[broken]))
        waiting, length = waiting[~broken], length[~broken] / 2
    for which, there in landed:
        if len(which):
            away = there - oracle.x[rows[which]]
            oracle.bisect(rows[which], away, torch.ones_like(oracle.distance[rows[which]]), TOLERANCE)
