"""Geometry of linear borders inside the box: distances and shortest moves, for a whole batch at once."""

from typing import Literal

import torch
from torch import Generator, Tensor

from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, PerImage

Norm = Literal["linf", "l2"]

SMALLEST = 1e-12


def dual_length(normal: Images, norm: Norm) -> PerImage:
    """Return the length of each normal in the dual norm: l1 for linf, l2 for l2.

    A value v is |v| / dual_length away from the plane where it is 0.
    """
    flat = normal.flatten(1)
    return flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)


def move_to(points: Images, normal: Images, height: PerImage, norm: Norm) -> Images:
    """Return the shortest move that stays in [0, 1] and brings `height` to 0 if it is linear with slope `normal`.

    Where the plane does not meet the box, the move goes to the corner nearest to it.

    Source: the projection of Croce & Hein 2020 (FAB), section 3.1, in both norms: coordinate i moves against the
    height by min(t v_i, room_i) with v = 1 for linf and |w| for l2, and t solves sum_i |w_i| min(t v_i, room_i) =
    |height|, whose left side is linear between the sorted values of room_i / v_i.
    """
    way = -height.sign().view(-1, 1, 1, 1) * normal.sign()
    room = torch.where(way > 0, 1 - points, points).flatten(1)
    slope = normal.abs().flatten(1)
    speed = torch.ones_like(slope) if norm == "linf" else slope
    time = _time_to_gain(height.abs(), slope, speed, room)
    length = torch.minimum(time[:, None] * speed, room)
    return way * length.view_as(points)


def _time_to_gain(gain: PerImage, slope: Tensor, speed: Tensor, room: Tensor) -> PerImage:
    """Solve sum_i slope_i min(t speed_i, room_i) = gain for t; a gain out of reach takes as long as the last one."""
    full_at = torch.where(speed > 0, room / speed.clamp_min(SMALLEST), 0)
    full_at, order = full_at.sort(dim=1)
    rate = (slope * speed).gather(1, order)
    stopped = (slope * room).gather(1, order).cumsum(1)
    # Rates add up from the slowest end, so that the sum of what is left never drops below 0 by rounding.
    left = rate.flip(1).cumsum(1).flip(1)
    reached = stopped + full_at * (left - rate)
    first = (reached < gain[:, None]).sum(1, keepdim=True).clamp_max(reached.shape[1] - 1)
    before = torch.where(first > 0, stopped.gather(1, (first - 1).clamp_min(0)), 0)
    time = (gain[:, None] - before) / left.gather(1, first).clamp_min(SMALLEST)
    return torch.minimum(time, full_at[:, -1:])[:, 0].clamp_min(0)


def random_direction(x: Images, norm: Norm, rng: Generator) -> Images:
    """Draw a random direction of norm 1 for each image."""
    if norm == "l2":
        return ThreatModel(norm=norm, eps=1.0).steepest(
            torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        )
    way = 2 * torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype) - 1
    return way / way.flatten(1).abs().amax(1).clamp_min(SMALLEST).view(-1, 1, 1, 1)
