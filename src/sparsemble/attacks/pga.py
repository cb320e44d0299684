"""Projected gradient ascent on any number an image, kept best by any other."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sparsemble.attacks.attack import input_gradient
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, PerImage


class At(NamedTuple):
    """Where an ascent stands."""

    rows: Tensor
    """Places in the batch of the images that are still moved; index labels and targets with it."""
    step: int
    """Steps taken from the present start."""
    start: int
    """Number of the start, from 0."""


class Value(NamedTuple):
    """What a point is worth, image by image."""

    loss: PerImage
    """What the next step climbs; differentiable."""
    rank: PerImage
    """What the point is kept by; higher is better."""


def climb(
    value: Callable[[Images, At], Value],
    x: Images,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float,
    restarts: int = 1,
    rng: Generator,
    start: Images | None = None,
    enough: float = float("inf"),
) -> Images:
    """Return the point of highest rank on all paths, the last of each included.

    Args:
        value: called with the images still moved and where the ascent stands.
        x: clean images.
        threat: where the points may lie.
        steps: gradient steps from each start.
        step_size: in units of eps.
        restarts: number of starts; all are random but, where `start` is given, the first.
        rng: draws the starts, for the whole batch each time, so that no image's start depends on another's fate.
        start: allowed images to begin at.
        enough: an image that has reached this rank is moved no further.

    Raises:
        RunError: a rank is NaN.
    """
    best, best_rank = x, torch.full((len(x),), -float("inf"), device=x.device, dtype=x.dtype)
    for restart in range(restarts):
        begin = start if start is not None and restart == 0 else threat.random_start(x, rng)
        rows = (best_rank < enough).nonzero()[:, 0]
        point = begin[rows]
        for step in range(steps + 1):
            if not len(rows):
                break
            point = point.detach().requires_grad_()
            with for_images(rows):
                loss, rank = value(point, At(rows, step, restart))
            rank = rank.detach().to(best_rank.dtype)
            if rank.isnan().any():
                raise RunError("an attack met NaN; does the model return NaN or infinite logits?")
            better = rank > best_rank[rows]
            best = best.index_copy(0, rows[better], point.detach()[better])
            best_rank = best_rank.index_copy(0, rows[better], rank[better])
            if step < steps:
                move = step_size * threat.eps * threat.steepest(input_gradient(loss, point))
                still = best_rank[rows] < enough
                point = threat.project(point.detach() + move, x[rows])[still]
                rows = rows[still]
    return best


def squash(value: PerImage) -> PerImage:
    """Press numbers into (-1, 1) in order, so that a rank can hold them below its whole steps."""
    return value / (1 + value.abs())


def check_ascent(*, steps: int, step_size: float, restarts: int = 1) -> None:
    """Refuse settings that no ascent can have.

    Raises:
        InputError: naming the value.
    """
    if steps < 1 or restarts < 1:
        raise InputError(f"steps = {steps} and restarts = {restarts} must be 1 or more")
    if not step_size > 0:
        raise InputError(f"step_size = {step_size:g} must be above 0 (it is in units of eps)")
