"""The threat model: the norm and the radius of perturbations."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, final

import torch
from torch import Generator, Tensor

from sparsemble.core.distributed_rng import normal_like, uniform_like
from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, PerImage

LARGEST_EPS = {"linf": 1.0, "l2": 5.0}


@final
@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """All images in [0, 1] within distance `eps` of the clean one.

    Raises:
        InputError: `eps` is negative or too large for the norm (such as 8 for 8/255).
    """

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the perturbation."""
    eps: float = 8 / 255
    """Largest distance, in units where an image spans [0, 1]; linf at most 1, l2 at most 5."""

    def __post_init__(self) -> None:
        if self.norm not in LARGEST_EPS:
            raise InputError(f'norm = "{self.norm}" is not known; use "linf" or "l2"')
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

    def project(self, x_adv: Images, x: Images) -> Images:
        """Return `x_adv` projected onto the ball around `x` and clipped to [0, 1].

        For linf this is the nearest point of the intersection; for l2 the perturbation is scaled, then clipped.
        """
        delta = x_adv - x
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
            delta = delta * (self.eps / length).clamp_max(1.0).view(-1, 1, 1, 1)
        return (x + delta).clamp(0.0, 1.0)

    def distance(self, x_adv: Images, x: Images) -> PerImage:
        """Return the distance of each pair of images in this norm (B)."""
        delta = (x_adv - x).flatten(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)

    def random_start(self, x: Images, rng: Generator) -> Images:
        """Return random images in the threat model: uniform in the ball, then clipped to [0, 1]."""
        if self.norm == "linf":
            delta = uniform_like(x, rng) * 2 - 1
        else:
            delta = self.steepest(normal_like(x, rng))
            radius = uniform_like(x.new_empty(len(x)), rng) ** (1 / x[0].numel())
            delta = delta * radius.view(-1, 1, 1, 1)
        return self.project(x + self.eps * delta, x)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the step of unit norm that increases a linear function with this gradient most."""
        if self.norm == "linf":
            return gradient.sign()
        # Scaled first, because the squares of a confident model's gradient underflow.
        tiny = torch.finfo(gradient.dtype).tiny
        largest = gradient.flatten(1).abs().amax(1).clamp_min(tiny).view(-1, 1, 1, 1)
        scaled = gradient / largest
        length: Tensor = scaled.flatten(1).norm(dim=1).clamp_min(tiny)
        return scaled / length.view(-1, 1, 1, 1)


def as_fraction(eps: float) -> str:
    """Return eps as the string n/255 if it is such a fraction, else as a decimal."""
    fraction = Fraction(eps).limit_denominator(255)
    if abs(float(fraction) - eps) < 1e-9 and 255 % fraction.denominator == 0 and 0 < eps < 1:
        return f"{fraction.numerator * 255 // fraction.denominator}/255"
    return f"{eps:g}"
