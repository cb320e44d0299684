"""The images that a run of Auto-PGD still attacks, and its two kinds of step (Croce & Hein 2020 and 2021)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, final

import torch
from torch import Tensor

from sparsemble.core.threat import Norm, ThreatModel, project, sparse_step
from sparsemble.core.types import Counts, Flags, Images, Labels, PerImage

MOMENTUM = 0.75
"""Weight of the new step; the rest continues in the direction of the last one."""
FIRST_STEP = 2.0
"""Length of the first steps in linf and l2, in units of the radius."""
WINDOW = 0.04
"""In l1, fraction of the steps of a run after which sparsity and step size are adapted."""
SPARSER = 1.5
"""In l1, a step changes this many times fewer coordinates than the best point."""
MUCH_SPARSER = 0.95
"""Ratio of changed coordinates from which on the step size in l1 falls; below, it is set back to the radius."""
SHRINK, SHORTEST = 1.5, 0.1
"""Divisor by which the step size in l1 falls, and its least value in units of the radius."""


@dataclass(kw_only=True)
class ImageStates(ABC):
    """Images that are still attacked, and the state of the search for each."""

    norm: Norm
    rows: Counts
    """Index in the batch."""
    x: Images
    y: Labels
    radius: PerImage
    point: Images
    gradient: Images
    loss: PerImage
    best: Images
    best_gradient: Images
    best_loss: PerImage
    step_size: PerImage

    @final
    def only(self, selected: Flags) -> "ImageStates":
        """Return some of them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        parts: dict[str, Any] = {name: v[selected] for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **parts)

    @final
    def _record_(self, loss: PerImage, gradient: Images) -> None:
        """Record loss and gradient at the point."""
        better = loss > self.best_loss
        shaped = better.view(-1, 1, 1, 1)
        self.best = torch.where(shaped, self.point, self.best)
        self.best_gradient = torch.where(shaped, gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.loss, self.gradient = loss, gradient

    @final
    def _return_to_best_(self, selected: Flags) -> None:
        shaped = selected.view(-1, 1, 1, 1)
        self.point = torch.where(shaped, self.best, self.point)
        self.gradient = torch.where(shaped, self.best_gradient, self.gradient)

    @abstractmethod
    def move_(self, step: int) -> None:
        """Take a step, the first of which is 1."""

    @abstractmethod
    def update_(self, loss: PerImage, gradient: Images) -> None:
        """Receive loss and gradient at the point."""

    @abstractmethod
    def adapt_(self, least_rises: float) -> None:
        """Adapt the steps at a checkpoint; `least_rises` of those since the last one should have raised the loss."""


@final
@dataclass(kw_only=True)
class DenseStates(ImageStates):
    """Steps along the whole gradient, with momentum, for linf and l2 (Croce & Hein 2020, algorithm 1)."""

    previous: Images
    rises: PerImage
    """Steps since the last checkpoint that raised the loss."""
    checked_loss: PerImage
    """Best loss at the last checkpoint."""
    halved: Flags
    """Whether the last checkpoint halved the step."""

    def move_(self, step: int) -> None:
        """Step along the gradient, and in the direction of the last step (their eq. 4)."""
        momentum = MOMENTUM if step > 1 else 1.0
        direction = self.step_size.view(-1, 1, 1, 1) * ThreatModel(norm=self.norm).steepest(self.gradient)
        ahead = project(self.point + direction, self.x, self.radius, self.norm)
        inertia = (1 - momentum) * (self.point - self.previous)
        mixed = self.point + momentum * (ahead - self.point) + inertia
        self.previous, self.point = self.point, project(mixed, self.x, self.radius, self.norm)

    def update_(self, loss: PerImage, gradient: Images) -> None:
        """Record loss and gradient, and whether the loss rose."""
        self.rises = self.rises + (loss > self.loss)
        self._record_(loss, gradient)

    def adapt_(self, least_rises: float) -> None:
        """Halve the steps of images whose loss rose too rarely or not at all, and return these to their best point."""
        stuck = ~self.halved & (self.checked_loss >= self.best_loss)
        self.halved = (self.rises <= least_rises) | stuck
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self._return_to_best_(self.halved)
        self.checked_loss = self.best_loss
        self.rises = torch.zeros_like(self.rises)


@final
@dataclass(kw_only=True)
class SparseStates(ImageStates):
    """Steps that change few coordinates, fewer where the best point is sparse (Croce & Hein 2021, algorithm 1)."""

    changed: PerImage
    """Fraction of the coordinates that differ from the clean image at the best point of the last checkpoint."""

    def move_(self, step: int) -> None:
        """Move the coordinates of largest gradient, and project onto the intersection of ball and box."""
        direction = self.step_size.view(-1, 1, 1, 1) * sparse_step(self.gradient, self.changed / SPARSER)
        self.point = project(self.point + direction, self.x, self.radius, self.norm)

    def update_(self, loss: PerImage, gradient: Images) -> None:
        """Record loss and gradient."""
        self._record_(loss, gradient)

    def adapt_(self, least_rises: float) -> None:
        """Return images whose best point became sparser to it, with a whole step; shorten the steps of the others."""
        changed = changed_fraction(self.best, self.x)
        sparser = changed / self.changed.clamp_min(torch.finfo(changed.dtype).tiny) < MUCH_SPARSER
        shorter = torch.maximum(self.step_size / SHRINK, SHORTEST * self.radius)
        self.step_size = torch.where(sparser, self.radius, shorter)
        self._return_to_best_(sparser)
        self.changed = changed


def states_at(
    norm: Norm, x: Images, y: Labels, radius: PerImage, start: Images, loss: PerImage, gradient: Images
) -> ImageStates:
    """Return the states before the first step.

    Args:
        norm: of the balls.
        x: (B, C, H, W) clean images.
        y: (B) true classes.
        radius: (B) of the balls.
        start: (B, C, H, W) first points.
        loss: (B) at the first points.
        gradient: (B, C, H, W) of the loss at the first points.
    """
    shared: dict[str, Any] = {
        "norm": norm,
        "rows": torch.arange(len(x), device=x.device),
        "x": x,
        "y": y,
        "radius": radius,
        "point": start,
        "gradient": gradient,
        "loss": loss,
        "best": start,
        "best_gradient": gradient,
        "best_loss": loss,
    }
    if norm == "l1":
        return SparseStates(**shared, step_size=radius, changed=changed_fraction(start, x))
    return DenseStates(
        **shared,
        step_size=FIRST_STEP * radius,
        previous=start,
        rises=torch.zeros_like(loss),
        checked_loss=loss,
        halved=torch.ones_like(loss, dtype=torch.bool),
    )


def changed_fraction(point: Images, x: Images) -> PerImage:
    """Return the fraction of the coordinates in which each point differs from the clean image."""
    return (point != x).flatten(1).to(x.dtype).mean(1)


def checkpoints(steps: int, norm: Norm) -> dict[int, int]:
    """Return the steps after which step sizes are adapted, each with the number of steps since the one before.

    Source: Croce & Hein 2020, section 3.3: 22 % of the steps, then 3 % fewer each time, but at least 6 %; in l1 always
    4 % (Croce & Hein 2021, section 3.3).
    """
    if norm == "l1":
        window = max(int(WINDOW * steps), 1)
        return dict.fromkeys(range(window, steps + 1, window), window)
    window, decrement, shortest = (max(int(fraction * steps), 1) for fraction in (0.22, 0.03, 0.06))
    step, windows = 0, {}
    while step + window <= steps:
        step += window
        windows[step] = window
        window = max(window - decrement, shortest)
    return windows
