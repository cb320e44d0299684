"""The search of Auto-PGD, with a step size for each image (Croce & Hein 2020 and, for l1, 2021)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Generator

from sparsemble.attacks.apgd_states import ImageStates, checkpoints, states_at
from sparsemble.attacks.attack import Attack, input_gradient, random_direction, refuse_nan
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.core.argument_checks import check_at_least, check_interval
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import Norm, ThreatModel, project
from sparsemble.core.types import Classifier, Counts, Flags, Images, Labels, Logits, PerImage

LARGER_RADII = ((3, 0.3), (2, 0.3))
"""In l1, a run begins in balls of so many times the radius, each for this fraction of the steps."""

RowLoss = Callable[[Logits, Counts], PerImage]
"""Maps logits and the indices of their images in the batch to the loss that is maximised."""


@final
@dataclass(frozen=True, kw_only=True)
class APGDSearch:
    """Settings of one run of algorithm 1."""

    steps: int
    rho: float = 0.75
    stop_at_success: bool = True

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps)
        check_interval("(0, 1)", rho=self.rho)

    def __call__(
        self,
        model: Classifier,
        x: Images,
        y: Labels,
        threat: ThreatModel,
        start: Images,
        loss: RowLoss,
        *,
        radius: PerImage | None = None,
    ) -> tuple[BestPoints, PerImage]:
        """Run the search from `start`; with `stop_at_success`, images leave when they are misclassified.

        In l1 the steps are divided over balls of three, two and one times the radius (Croce & Hein 2021, section 3.4);
        points outside the last ball do not count.

        Passes, each image: steps + 1 forward (in l1, steps + 3) and steps backward; none after a success.

        Args:
            model: maps images to logits.
            x: (B, C, H, W) clean images in [0, 1].
            y: (B) true classes.
            threat: norm and radius of the ball.
            start: (B, C, H, W) first points, such as those of `random_start_at_eps`.
            loss: what is maximised.
            radius: (B) of each image's ball, in place of the radius of `threat`.

        Returns:
            The best points, scored by the loss, and (B) their margins: best wrong logit minus the true one.
        """
        radius = torch.full_like(x[:, 0, 0, 0], threat.eps) if radius is None else radius
        best, margin = BestPoints.of_clean(start), torch.full_like(start[:, 0, 0, 0], -float("inf"))

        def explore(point: Images, y: Labels, rows: Counts, with_gradient: bool) -> Evaluated:
            return _evaluate(model, point, y, rows, loss, with_gradient=with_gradient)

        def record(point: Images, y: Labels, rows: Counts, with_gradient: bool) -> Evaluated:
            result = explore(point, y, rows, with_gradient)
            better = best.improve_(rows, point, result.success, result.loss)
            margin[rows[better]] = result.margin[better]
            return result

        stages = _stages(self.steps, threat.norm)
        for factor, steps in stages[:-1]:
            wider = factor * radius
            start = self._run(explore, x, y, threat.norm, wider, start, steps, stops=False).best
        self._run(record, x, y, threat.norm, radius, start, stages[-1][1], stops=self.stop_at_success)
        return best, margin

    def _run(
        self,
        evaluate: Callable[[Images, Labels, Counts, bool], "Evaluated"],
        x: Images,
        y: Labels,
        norm: Norm,
        radius: PerImage,
        start: Images,
        steps: int,
        *,
        stops: bool,
    ) -> ImageStates:
        """Run algorithm 1 in one ball, and return the last states of the images that are left."""
        if norm == "l1":
            start = project(start, x, radius, norm)
        rows = torch.arange(len(x), device=x.device)
        at = evaluate(start, y, rows, True)
        states = states_at(norm, x, y, radius, start, at.loss, at.gradient)
        windows = checkpoints(steps, norm)
        for step in range(1, steps + 1):
            if stops and bool(at.success.any()):
                states = states.only(~at.success)
            if not len(states.rows):
                break
            states.move_(step)
            at = evaluate(states.point, states.y, states.rows, step < steps)
            states.update_(at.loss, at.gradient)
            if step in windows:
                states.adapt_(self.rho * windows[step])
        return states


class Evaluated(NamedTuple):
    """What a run knows of its points, one value for each image."""

    success: Flags
    """Whether the point is misclassified."""
    loss: PerImage
    margin: PerImage
    gradient: Images
    """Of the loss; 0 where it was not needed."""


def _evaluate(
    model: Classifier, point: Images, y: Labels, rows: Counts, loss: RowLoss, *, with_gradient: bool
) -> Evaluated:
    leaf = point.detach().requires_grad_(with_gradient)
    with torch.set_grad_enabled(with_gradient), for_images(rows):
        logits = model(leaf)
        value = loss(logits, rows)
    gradient = input_gradient(value, leaf) if with_gradient else torch.zeros_like(point)
    logits, value = logits.detach(), value.detach()
    refuse_nan(value)
    return Evaluated(logits.argmax(1) != y, value, margin_of(logits, y), gradient)


def _stages(steps: int, norm: Norm) -> list[tuple[int, int]]:
    """Return the balls of a run, in units of the radius, with the number of steps in each; one or more in the last."""
    stages: list[tuple[int, int]] = []
    for factor, fraction in LARGER_RADII if norm == "l1" else ():
        part = min(math.ceil(fraction * steps), steps - 1 - sum(n for _, n in stages))
        stages += [(factor, part)] if part > 0 else []
    return [*stages, (1, steps - sum(n for _, n in stages))]


@dataclass(frozen=True, kw_only=True)
class APGDAttack(Attack):
    """What plain and targeted APGD share: the settings of their runs."""

    steps: int = 100
    """Gradient steps of each run, >= 1."""
    restarts: int = 1
    """Independent starts (for each target), >= 1; later ones only for images not yet misclassified."""
    rho: float = 0.75
    """Fraction of the steps between two checkpoints that must raise the loss, else the step is halved; linf and l2."""
    stop_at_success: bool = True
    """Return the first misclassified point; off: continue to the highest loss or margin."""

    def __post_init__(self) -> None:
        self._search()
        check_at_least(1, restarts=self.restarts)

    def _search(self) -> APGDSearch:
        return APGDSearch(steps=self.steps, rho=self.rho, stop_at_success=self.stop_at_success)

    def _rows(self, best: BestPoints) -> Counts:
        """Return the indices of the images that the next run attacks."""
        return best.open_rows() if self.stop_at_success else torch.arange(len(best.images), device=best.images.device)


@torch.no_grad()
def plain_logits(model: Classifier, x: Images) -> Logits:
    """Return logits without a gradient."""
    return model(x)


def random_start_at_eps(x: Images, threat: ThreatModel, rng: Generator) -> Images:
    """Draw a start at distance eps: a random direction of norm eps, projected into the box.

    In l1, normal noise is projected into the first of a run's balls (Croce & Hein 2021, section 3.4).

    Args:
        x: (B, C, H, W) clean images in [0, 1].
        threat: norm and radius of the ball.
        rng: source of the draws.
    """
    if threat.norm == "l1":
        noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        return project(x + noise, x, LARGER_RADII[0][0] * threat.eps, threat.norm)
    return threat.project(x + threat.eps * random_direction(x, threat.norm, rng), x)
