"""The threat model: the norm and the radius of perturbations."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from sparsemble.core.distributed_rng import normal_like, uniform_like
from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, PerImage

Norm = Literal["linf", "l2", "l1"]

LARGEST_EPS = {"linf": 1.0, "l2": 5.0, "l1": 1000.0}
TOLERANCE = 1e-6
"""Distance by which rounding may carry an image out of the ball."""
SPARSE = 0.01
"""Fraction of the coordinates that a steepest step in l1 changes."""
PROJECTION_STEPS = 60
"""Most steps of the search in a projection to l1; about ten are needed."""
SMALLEST = 1e-12


@final
@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """All images in [0, 1] within distance `eps` of the clean one.

    Raises:
        InputError: `eps` is negative or too large for the norm (such as 8 for 8/255).
    """

    norm: Norm = "linf"
    """Norm of the perturbation."""
    eps: float = 8 / 255
    """Largest distance, in units where an image spans [0, 1]; linf at most 1, l2 at most 5, l1 at most 1000."""

    def __post_init__(self) -> None:
        if self.norm not in LARGEST_EPS:
            raise InputError(f'norm = "{self.norm}" is not known; use "linf", "l2" or "l1"')
        if not math.isfinite(self.eps) or self.eps < 0:
            raise InputError(f"eps = {self.eps:g} must be 0 or more")
        if self.eps > LARGEST_EPS[self.norm]:
            hint = f'; did you mean "{self.eps:g}/255"?' if self.eps >= 1 else ""
            raise InputError(
                f"eps = {self.eps:g} is too large for {self.norm}: images lie in [0, 1], "
                f"so eps must be at most {LARGEST_EPS[self.norm]:g}{hint}"
            )

    def __str__(self) -> str:
        return f"{self.norm} {as_fraction(self.eps)}"

    @property
    def tolerance(self) -> float:
        """Distance by which rounding may carry an image out of the ball; an l1 distance adds up those of all pixels."""
        return 1e-5 * max(1.0, self.eps) if self.norm == "l1" else TOLERANCE

    def project(self, x_adv: Images, x: Images) -> Images:
        """Return `x_adv` projected onto the ball around `x` and into [0, 1], as `project` does."""
        return project(x_adv, x, self.eps, self.norm)

    def distance(self, x_adv: Images, x: Images) -> PerImage:
        """Return the distance of each pair of images in this norm (B)."""
        delta = (x_adv - x).flatten(1)
        if self.norm == "l1":
            return delta.abs().sum(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)

    def random_start(self, x: Images, rng: Generator) -> Images:
        """Return random images in the threat model: uniform in the ball, then projected into [0, 1]."""
        if self.norm == "linf":
            delta = uniform_like(x, rng) * 2 - 1
        else:
            delta = self.steepest(normal_like(x, rng)) if self.norm == "l2" else unit_laplace(uniform_like(x, rng))
            radius = uniform_like(x.new_empty(len(x)), rng) ** (1 / x[0].numel())
            delta = delta * radius.view(-1, 1, 1, 1)
        return self.project(x + self.eps * delta, x)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return a step of unit norm along the gradient.

        For linf and l2 it is the one that increases a linear function most. For l1 that would be one coordinate, of
        which the box soon ends the use; the step changes a hundredth of the coordinates, as in Tramer & Boneh 2019.
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l1":
            return sparse_step(gradient, torch.full_like(gradient[:, 0, 0, 0], SPARSE))
        # Scaled first, because the squares of a confident model's gradient underflow.
        tiny = torch.finfo(gradient.dtype).tiny
        largest = gradient.flatten(1).abs().amax(1).clamp_min(tiny).view(-1, 1, 1, 1)
        scaled = gradient / largest
        length: Tensor = scaled.flatten(1).norm(dim=1).clamp_min(tiny)
        return scaled / length.view(-1, 1, 1, 1)


def project(x_adv: Images, x: Images, radius: float | PerImage, norm: Norm) -> Images:
    """Return images projected onto the ball around each clean one and into [0, 1].

    For linf and l1 this is the nearest point of the intersection; for l2 the perturbation is scaled, then clipped.

    Args:
        x_adv: (B, C, H, W) images.
        x: (B, C, H, W) clean images in [0, 1].
        radius: of all balls, or (B) of each, >= 0; may be infinite.
        norm: of the balls.
    """
    delta = x_adv - x
    if norm == "l1":
        return (x + _nearest_in_l1(delta, x, radius)).clamp(0.0, 1.0)
    size: Any = radius.view(-1, 1, 1, 1) if isinstance(radius, Tensor) else radius
    if norm == "linf":
        delta = delta.clamp(-size, size)
    else:
        length = delta.flatten(1).norm(dim=1).clamp_min(SMALLEST).view(-1, 1, 1, 1)
        delta = delta * (length.reciprocal() * size).clamp_max(1.0)
    return (x + delta).clamp(0.0, 1.0)


def _nearest_in_l1(delta: Images, x: Images, radius: float | PerImage) -> Images:
    """Return the perturbation nearest to `delta` that lies in the l1 ball and keeps the image in [0, 1].

    Source: Croce & Hein 2021, proposition 2.1: every coordinate shrinks by the same threshold, at least to what the
    box allows and at most to 0.
    """
    size, room = delta.flatten(1).abs(), torch.where(delta > 0, 1 - x, x).flatten(1)
    total = torch.as_tensor(radius, dtype=x.dtype, device=x.device).expand(len(x))
    shrunk = torch.minimum(size, room)
    rows = (shrunk.sum(1) > total).nonzero()[:, 0]
    if len(rows):
        shrunk[rows] = _shrink_to_sum(size[rows], room[rows], total[rows])
    return delta.sign() * shrunk.view_as(delta)


def _shrink_to_sum(
    size: Float[Tensor, "B P"], room: Float[Tensor, "B P"], total: Float[Tensor, "B"]
) -> Float[Tensor, "B P"]:
    """Return min(max(size - t, 0), room) for the t at which a row has this sum, by Newton steps within a bracket.

    The sum is piecewise linear in t and falls, so that a step from the right piece ends exactly.
    """
    low, high = torch.zeros_like(total), size.amax(1)
    threshold = low
    kept = torch.minimum(size, room)
    for _ in range(PROJECTION_STEPS):
        excess = kept.sum(1) - total
        done = excess.abs() <= 1e-6 * total
        if bool(done.all()):
            break
        low, high = torch.where(excess > 0, threshold, low), torch.where(excess > 0, high, threshold)
        left = size - threshold[:, None]
        slope = ((left > 0) & (left <= room)).sum(1)
        newton = threshold + excess / slope
        moved = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        threshold = torch.where(done, threshold, moved)  # so that a row does not depend on the others
        kept = torch.minimum((size - threshold[:, None]).clamp_min(0), room)
    return kept * (total / kept.sum(1).clamp_min(SMALLEST)).clamp_max(1.0)[:, None]


def sparse_step(gradient: Tensor, fraction: PerImage) -> Tensor:
    """Return the step of l1 norm 1 that moves the coordinates of largest gradient by equal amounts.

    Args:
        gradient: (B, C, H, W).
        fraction: (B) of the coordinates that are moved, in [0, 1]; at least one is.
    """
    flat = gradient.flatten(1)
    count = (fraction * flat.shape[1]).ceil().long().clamp(1, flat.shape[1])
    largest = flat.abs().topk(int(count.max()) if len(count) else 1, dim=1).values
    least = largest.gather(1, count[:, None] - 1)
    signs = torch.where(flat.abs() >= least, flat.sign(), 0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


def unit_laplace(uniform: Tensor) -> Tensor:
    """Return directions of l1 norm 1, evenly distributed over the surface of the ball, from uniform draws in [0, 1)."""
    centred = 2 * uniform - 1
    draws = -centred.sign() * (1 - centred.abs()).clamp_min(torch.finfo(uniform.dtype).tiny).log()
    return draws / draws.flatten(1).abs().sum(1).clamp_min(SMALLEST).view(-1, *[1] * (uniform.dim() - 1))


def checked_threat(threat: Any) -> ThreatModel:
    """Return a threat model; anything else, such as a bare radius, is refused."""
    if not isinstance(threat, ThreatModel):
        raise InputError(f"threat = {threat!r:.60} must be a threat model, such as sparsemble.Linf(8 / 255)")
    return threat


def as_fraction(eps: float) -> str:
    """Return eps as the string n/255 if it is such a fraction, else as a decimal."""
    fraction = Fraction(eps).limit_denominator(255)
    if abs(float(fraction) - eps) < 1e-9 and 255 % fraction.denominator == 0 and 0 < eps < 1:
        return f"{fraction.numerator * 255 // fraction.denominator}/255"
    return f"{eps:g}"
