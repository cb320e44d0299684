"""Linearised decision boundaries: distances to them and shortest moves inside the box, for a whole batch at once."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsemble.attacks.attack import SMALLEST
from sparsemble.core.threat import Norm
from sparsemble.core.types import Classifier, Images, Labels, Logits, PerImage


@final
@dataclass(frozen=True)
class Hyperplane:
    """The points at which another class has the logit of the true one, if logits are linear around `point`."""

    point: Images
    normal: Images
    """Gradient of the other logit minus the true one."""
    height: PerImage
    """The other logit minus the true one at the point; negative while the image is classified correctly."""

    def move_from(self, start: Images, norm: Norm) -> Images:
        """Return the shortest move inside the box from `start` to the plane."""
        height = self.height + (self.normal * (start - self.point)).flatten(1).sum(1)
        return move_to(start, self.normal, height, norm)


def nearest_boundary(
    leaf: Images, logits: Logits, y: Labels, others: Int[Tensor, "B J"], norm: Norm
) -> tuple[Hyperplane, Float[Tensor, "B J"]]:
    """Return the nearest linearised boundary with other classes, and the distances to all of them.

    Passes, each image: J backward.

    Args:
        leaf: (B, C, H, W) images of which the logits were computed; requires a gradient.
        logits: (B, K) at these images.
        y: (B) true classes.
        others: (B, J) the other classes.
        norm: in which distance is measured.
    """
    heights = logits.gather(1, others) - logits.gather(1, y[:, None])
    best = torch.full_like(heights[:, 0], float("inf")).detach()
    normal, height = torch.zeros_like(leaf), torch.zeros_like(best)
    distances = []
    for i in range(others.shape[1]):
        last = i + 1 == others.shape[1]
        (slope,) = torch.autograd.grad(heights[:, i].sum(), leaf, retain_graph=not last)
        value = heights[:, i].detach()
        distance = value.abs() / dual_norm(slope, norm).clamp_min(SMALLEST)
        distances.append(distance)
        nearer = distance < best
        best, height = torch.where(nearer, distance, best), torch.where(nearer, value, height)
        normal = torch.where(nearer.view(-1, 1, 1, 1), slope, normal)
    return Hyperplane(leaf.detach(), normal.detach(), height), torch.stack(distances, 1)


def nearest_boundary_at(
    model: Classifier, point: Images, y: Labels, others: Int[Tensor, "B J"], norm: Norm
) -> Hyperplane:
    """Return the nearest linearised boundary with other classes.

    Passes, each image: 1 forward and J backward.

    Args:
        model: maps images to logits.
        point: (B, C, H, W) images.
        y: (B) true classes.
        others: (B, J) the other classes.
        norm: in which distance is measured.
    """
    leaf = point.detach().requires_grad_()
    return nearest_boundary(leaf, model(leaf), y, others, norm)[0]


def dual_norm(normal: Images, norm: Norm) -> PerImage:
    """Return the dual norm of each normal: l1 for linf, l2 for l2, linf for l1.

    A point at which a linear function has the value v is |v| / dual_norm away from the plane where it is 0.
    """
    flat = normal.flatten(1)
    if norm == "l1":
        return flat.abs().amax(1)
    return flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)


def move_to(points: Images, normal: Images, height: PerImage, norm: Norm) -> Images:
    """Return the shortest move to a plane that stays in [0, 1]; where the box does not meet it, to the nearest corner.

    Source: the projections of Croce & Hein 2020 (FAB), section 3.1. In linf and l2 coordinate i moves against the
    height by min(t v_i, room_i) with v = 1 for linf and |w| for l2, and t solves sum_i |w_i| min(t v_i, room_i) =
    |height|, whose left side is linear between the sorted values of room_i / v_i. In l1 the coordinates of largest |w|
    move one after the other, each as far as the box allows.

    Args:
        points: (B, C, H, W) in [0, 1].
        normal: (B, C, H, W) gradient w of a linear function.
        height: (B) the function's value at the points; the plane is where it is 0.
        norm: in which the move is shortest.
    """
    sign = -height.sign().view(-1, 1, 1, 1) * normal.sign()
    room = torch.where(sign > 0, 1 - points, points).flatten(1)
    slope = normal.abs().flatten(1)
    if norm == "l1":
        return sign * _greedy_lengths(height.abs(), slope, room).view_as(points)
    speed = torch.ones_like(slope) if norm == "linf" else slope
    time = _time_to_gain(height.abs(), slope, speed, room)
    length = torch.minimum(time[:, None] * speed, room)
    return sign * length.view_as(points)


def _greedy_lengths(gain: PerImage, slope: Tensor, room: Tensor) -> Tensor:
    """Return how far each coordinate moves, those of largest slope first, until sum_i slope_i length_i = gain."""
    steepest, order = slope.sort(dim=1, descending=True)
    free = room.gather(1, order)
    before = (steepest * free).cumsum(1) - steepest * free
    lengths = ((gain[:, None] - before).clamp_min(0) / steepest.clamp_min(SMALLEST)).minimum(free)
    return torch.zeros_like(slope).scatter(1, order, torch.where(steepest > 0, lengths, 0))


def _time_to_gain(gain: PerImage, slope: Tensor, speed: Tensor, room: Tensor) -> PerImage:
    """Solve sum_i slope_i min(t speed_i, room_i) = gain for t; at most the t at which all coordinates have stopped."""
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
