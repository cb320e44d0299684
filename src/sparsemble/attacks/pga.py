"""Projected gradient ascent (Madry et al. 2018, section 2.1): the loop of all attacks with steps of fixed length."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Generator

from sparsemble.attacks.attack import input_gradient, refuse_nan
from sparsemble.attacks.best_points import BestPoints
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Counts, Flags, Images, PerImage


class Progress(NamedTuple):
    """The state of an ascent when its objective is evaluated."""

    rows: Counts
    """Indices in the batch of the images that are evaluated; use them to index labels and targets."""
    step: int
    """Steps taken from the present start, from 0."""
    restart: int
    """Number of the start, from 0."""


class Evaluation(NamedTuple):
    """What an objective returns for each image."""

    loss: PerImage
    """The next step maximises this; differentiable."""
    success: Flags
    """Whether the point is what the attack looks for."""
    score: PerImage
    """Among points of equal success the one of highest score is kept."""


Objective = Callable[[Images, Progress], Evaluation]


def projected_gradient_ascent(
    objective: Objective,
    best: BestPoints,
    x: Images,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float,
    starts: Iterable[Images],
    keep_start: bool = True,
    stop_at_success: bool = True,
) -> BestPoints:
    """Take steps along the gradient from each start, and keep the best point of all paths, the last ones included.

    Passes, each image and start: steps + 1 forward and steps backward; none after a success.

    Args:
        objective: evaluates points of the images in `Progress.rows`.
        best: the record that is updated; images that are successful in it are not attacked.
        x: (B, C, H, W) clean images.
        threat: norm and radius of the ball.
        steps: gradient steps from each start, >= 1.
        step_size: length of a step in units of eps, > 0.
        starts: (B, C, H, W) allowed images for each start.
        keep_start: whether a start itself may be returned.
        stop_at_success: whether an image leaves after its first successful point.
    """
    for restart, start in enumerate(starts):
        rows = best.open_rows() if stop_at_success else torch.arange(len(x), device=x.device)
        point = start[rows]
        for step in range(steps + 1):
            if not len(rows):
                break
            moves = step < steps
            point = point.detach().requires_grad_(moves)
            with torch.set_grad_enabled(moves), for_images(rows):
                loss, success, score = objective(point, Progress(rows, step, restart))
            score = score.detach().to(best.score.dtype)
            refuse_nan(score)
            if step or keep_start:
                best.improve_(rows, point.detach(), success, score)
            if moves:
                going = ~success if stop_at_success else torch.ones_like(success)
                gradient = input_gradient(loss, point)
                refuse_nan(gradient[going])
                point = ascent_step(point.detach(), gradient, x[rows], threat, step_size)[going]
                rows = rows[going]
    return best


def ascent_step(point: Images, gradient: Images, x: Images, threat: ThreatModel, step_size: float) -> Images:
    """Take one steepest step along the gradient, and project the result into box and ball.

    Args:
        point: (B, C, H, W) where the step begins.
        gradient: (B, C, H, W) of the loss at the point.
        x: (B, C, H, W) clean images.
        threat: norm and radius of the ball.
        step_size: length of the step in units of eps.
    """
    if threat.norm == "l1":  # else the few coordinates that move would be those that the box holds
        gradient = torch.where(torch.where(gradient > 0, point < 1, point > 0), gradient, 0)
    return threat.project(point + step_size * threat.eps * threat.steepest(gradient), x)


def random_starts(
    x: Images, threat: ThreatModel, count: int, rng: Generator, *, first: Images | None = None
) -> Iterator[Images]:
    """Draw random starts, each for the whole batch, so that no image's start depends on another's success.

    Args:
        x: (B, C, H, W) clean images.
        threat: norm and radius of the ball.
        count: number of starts.
        rng: source of the draws.
        first: (B, C, H, W) allowed images to use in place of the first draw.
    """
    for number in range(count):
        yield first if first is not None and number == 0 else threat.random_start(x, rng)
