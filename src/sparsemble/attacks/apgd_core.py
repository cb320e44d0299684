"""The search of Auto-PGD, with a step size for each image (Croce & Hein 2020, algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import Attack, input_gradient, random_direction, refuse_nan
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.core.argument_checks import check_at_least, check_interval
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Flags, Images, Labels, Logits, PerImage

MOMENTUM = 0.75
"""Weight of the new step; the rest continues in the direction of the last one."""
FIRST_STEP = 2.0
"""Length of the first steps, in units of eps."""

RowLoss = Callable[[Logits, Counts], PerImage]
"""Maps logits and the indices of their images in the batch to the loss that is maximised."""


@final
@dataclass
class _ImageStates:
    """Images that are still attacked, and the state of the search for each."""

    rows: Counts
    """Index in the batch."""
    x: Images
    y: Labels
    point: Images
    previous: Images
    gradient: Images
    loss: PerImage
    best: Images
    best_gradient: Images
    best_loss: PerImage
    step_size: PerImage
    rises: PerImage
    """Steps since the last checkpoint that raised the loss."""
    checked_loss: PerImage
    """Best loss at the last checkpoint."""
    halved: Flags
    """Whether the last checkpoint halved the step."""

    @classmethod
    def at_start(
        cls, x: Images, y: Labels, start: Images, loss: PerImage, gradient: Images, eps: float
    ) -> "_ImageStates":
        """Return the states before the first step."""
        return cls(
            rows=torch.arange(len(x), device=x.device),
            x=x,
            y=y,
            point=start,
            previous=start,
            gradient=gradient,
            loss=loss,
            best=start,
            best_gradient=gradient,
            best_loss=loss,
            step_size=torch.full_like(loss, FIRST_STEP * eps),
            rises=torch.zeros_like(loss),
            checked_loss=loss,
            halved=torch.ones_like(loss, dtype=torch.bool),
        )

    def only(self, selected: Flags) -> "_ImageStates":
        """Return some of them."""
        return _ImageStates(**{field.name: getattr(self, field.name)[selected] for field in fields(self)})

    def move_(self, threat: ThreatModel, momentum: float) -> None:
        """Take a step: along the gradient, and in the direction of the last step (their eq. 4)."""
        length = self.step_size.view(-1, 1, 1, 1)
        ahead = threat.project(self.point + length * threat.steepest(self.gradient), self.x)
        inertia = (1 - momentum) * (self.point - self.previous)
        moved = threat.project(self.point + momentum * (ahead - self.point) + inertia, self.x)
        self.previous, self.point = self.point, moved

    def update_(self, loss: PerImage, gradient: Images) -> None:
        """Record loss and gradient at the point."""
        self.rises = self.rises + (loss > self.loss)
        better = loss > self.best_loss
        shaped = better.view(-1, 1, 1, 1)
        self.best = torch.where(shaped, self.point, self.best)
        self.best_gradient = torch.where(shaped, gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.loss, self.gradient = loss, gradient

    def halve_steps_(self, least_rises: float) -> None:
        """Halve the steps of images whose loss rose too rarely or not at all, and return these to their best point."""
        stuck = ~self.halved & (self.checked_loss >= self.best_loss)
        self.halved = (self.rises <= least_rises) | stuck
        shaped = self.halved.view(-1, 1, 1, 1)
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.point = torch.where(shaped, self.best, self.point)
        self.gradient = torch.where(shaped, self.best_gradient, self.gradient)
        self.checked_loss = self.best_loss
        self.rises = torch.zeros_like(self.rises)


@final
@dataclass(frozen=True, kw_only=True)
class APGDSearch:
    """Settings of one run of algorithm 1."""

    steps: int
    eot: int = 1
    rho: float = 0.75
    stop_at_success: bool = True

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, eot=self.eot)
        check_interval("(0, 1)", rho=self.rho)

    def __call__(
        self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, start: Images, loss: RowLoss
    ) -> tuple[BestPoints, PerImage]:
        """Run the search from `start`; with `stop_at_success`, images leave when they are misclassified.

        Passes, each image: steps + 1 forward and steps backward, `eot` times; none after a success.

        Returns:
            The best points, scored by the loss, and (B) their margins: best wrong logit minus the true one.
        """
        best, margin = BestPoints.of_clean(start), torch.full_like(start[:, 0, 0, 0], -float("inf"))

        def evaluate(point: Images, y: Labels, rows: Counts, *, with_gradient: bool) -> tuple[Flags, PerImage, Images]:
            logits, value, gradient = self._evaluate(model, point, rows, loss, with_gradient=with_gradient)
            success = logits.argmax(1) != y
            better = best.improve_(rows, point, success, value)
            margin[rows[better]] = margin_of(logits, y)[better]
            return success, value, gradient

        rows = torch.arange(len(x), device=x.device)
        success, value, gradient = evaluate(start, y, rows, with_gradient=True)
        states = _ImageStates.at_start(x, y, start, value, gradient, threat.eps)
        windows = checkpoints(self.steps)
        for step in range(1, self.steps + 1):
            if self.stop_at_success and bool(success.any()):
                states = states.only(~success)
            if not len(states.rows):
                break
            states.move_(threat, MOMENTUM if step > 1 else 1.0)
            success, value, gradient = evaluate(states.point, states.y, states.rows, with_gradient=step < self.steps)
            states.update_(value, gradient)
            if step in windows:
                states.halve_steps_(self.rho * windows[step])
        return best, margin

    def _evaluate(
        self, model: Classifier, point: Images, rows: Counts, loss: RowLoss, *, with_gradient: bool
    ) -> tuple[Logits, PerImage, Images]:
        """Return logits and loss at a point, averaged over `eot` passes, and the summed gradient."""
        gradient = torch.zeros_like(point)
        all_logits, losses = [], []
        for _ in range(self.eot):
            leaf = point.detach().requires_grad_(with_gradient)
            with torch.set_grad_enabled(with_gradient), for_images(rows):
                logits = model(leaf)
                value = loss(logits, rows)
            if with_gradient:
                gradient += input_gradient(value, leaf)
            all_logits.append(logits.detach())
            losses.append(value.detach())
        mean = torch.stack(losses).mean(0)
        refuse_nan(mean)
        return torch.stack(all_logits).mean(0), mean, gradient


@dataclass(frozen=True, kw_only=True)
class APGDAttack(Attack):
    """What plain and targeted APGD share: the settings of their runs."""

    steps: int = 100
    """Gradient steps of each run, >= 1."""
    restarts: int = 1
    """Independent starts (for each target), >= 1; later ones only for images not yet misclassified."""
    eot: int = 1
    """Passes averaged at each point, for models with randomness; 1 for all others."""
    rho: float = 0.75
    """Fraction of the steps between two checkpoints that must raise the loss, else the step is halved."""
    stop_at_success: bool = True
    """Return the first misclassified point; off: continue to the highest loss or margin."""

    def __post_init__(self) -> None:
        self._search()
        check_at_least(1, restarts=self.restarts)

    def _search(self) -> APGDSearch:
        return APGDSearch(steps=self.steps, eot=self.eot, rho=self.rho, stop_at_success=self.stop_at_success)

    def _rows(self, best: BestPoints) -> Counts:
        """Return the indices of the images that the next run attacks."""
        return best.open_rows() if self.stop_at_success else torch.arange(len(best.images), device=best.images.device)


def checkpoints(steps: int) -> dict[int, int]:
    """Return the steps after which step sizes may be halved, each with the number of steps since the one before.

    Source: Croce & Hein 2020, section 3.3: 22 % of the steps, then 3 % fewer each time, but at least 6 %.
    """
    window, decrement, shortest = (max(int(fraction * steps), 1) for fraction in (0.22, 0.03, 0.06))
    step, windows = 0, {}
    while step + window <= steps:
        step += window
        windows[step] = window
        window = max(window - decrement, shortest)
    return windows


@torch.no_grad()
def mean_logits(model: Classifier, x: Images, eot: int) -> Logits:
    """Return logits averaged over several passes.

    Args:
        model: maps images to logits.
        x: (B, C, H, W) images.
        eot: number of passes, >= 1; 1 for models without randomness.
    """
    total = model(x)
    for _ in range(eot - 1):
        total = total + model(x)
    return total / eot if eot > 1 else total


def random_start_at_eps(x: Images, threat: ThreatModel, rng: Generator) -> Images:
    """Draw a start at distance eps: a random direction of norm eps, projected into the box.

    Args:
        x: (B, C, H, W) clean images in [0, 1].
        threat: norm and radius of the ball.
        rng: source of the draws.
    """
    return threat.project(x + threat.eps * random_direction(x, threat.norm, rng), x)
