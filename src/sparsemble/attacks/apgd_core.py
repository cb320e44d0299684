"""APGD's walk up a loss, with a step size of its own for each image (Croce & Hein 2020, algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import final

import torch
from torch import Generator, Tensor

from sparsemble.attacks.attack import input_gradient
from sparsemble.attacks.losses.margin import Margin
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Flags, Images, Labels, Logits, PerImage

MOMENTUM = 0.75
"""Share of the new step; the rest goes on as before."""
FIRST_STEP = 2.0
"""Length of the first steps, in units of eps."""

RowLoss = Callable[[Logits, Counts], PerImage]
"""From logits and the places of their images in the whole batch to what is climbed."""


@final
@dataclass
class Outcome:
    """The best point found for each image: misclassified before correct, then the higher score."""

    images: Images
    broken: Flags
    """Whether the point is misclassified."""
    score: PerImage
    """Loss at the point."""
    margin: PerImage
    """Best wrong logit minus the true one at the point."""

    @classmethod
    def nothing_yet(cls, x: Images) -> "Outcome":
        """Make the outcome that any point improves."""
        lowest = torch.full_like(x[:, 0, 0, 0], -float("inf"))
        return cls(x.clone(), torch.zeros_like(lowest, dtype=torch.bool), lowest, lowest.clone())

    def only(self, rows: Counts) -> "Outcome":
        """Return copies of some of them."""
        return Outcome(*(getattr(self, field.name)[rows] for field in fields(self)))

    def improve_(self, rows: Counts, other: "Outcome") -> None:
        """Take over the points of `other` that are better; its images stand at `rows` of this batch."""
        was, now = self.broken[rows], other.broken
        better = (now & ~was) | ((now == was) & (other.score > self.score[rows]))
        for field in fields(self):
            getattr(self, field.name)[rows[better]] = getattr(other, field.name)[better]


@final
@dataclass
class Walkers:
    """Images on their way, and what each remembers."""

    rows: Counts
    """Place in the whole batch."""
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

    def only(self, kept: Flags) -> "Walkers":
        """Return some of them."""
        return Walkers(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})

    def move_(self, threat: ThreatModel, momentum: float) -> None:
        """Take a step: up the gradient, and on in the direction of the last one (their eq. 4)."""
        length = self.step_size.view(-1, 1, 1, 1)
        ahead = threat.project(self.point + length * threat.steepest(self.gradient), self.x)
        inertia = (1 - momentum) * (self.point - self.previous)
        moved = threat.project(self.point + momentum * (ahead - self.point) + inertia, self.x)
        self.previous, self.point = self.point, moved

    def remember_(self, loss: PerImage, gradient: Images) -> None:
        """Note what was seen at the point."""
        self.rises = self.rises + (loss > self.loss)
        better = loss > self.best_loss
        shaped = better.view(-1, 1, 1, 1)
        self.best = torch.where(shaped, self.point, self.best)
        self.best_gradient = torch.where(shaped, gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.loss, self.gradient = loss, gradient

    def judge_(self, enough: float) -> None:
        """Halve the steps of those that rose too rarely or stand still, and send them back to their best point."""
        still = ~self.halved & (self.checked_loss >= self.best_loss)
        self.halved = (self.rises <= enough) | still
        shaped = self.halved.view(-1, 1, 1, 1)
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.point = torch.where(shaped, self.best, self.point)
        self.gradient = torch.where(shaped, self.best_gradient, self.gradient)
        self.checked_loss = self.best_loss
        self.rises = torch.zeros_like(self.rises)


@final
@dataclass(frozen=True, kw_only=True)
class Ascent:
    """Settings of the walk."""

    steps: int
    eot: int = 1
    rho: float = 0.75
    stop_at_success: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.eot < 1:
            raise InputError(f"steps = {self.steps} and eot = {self.eot} must be 1 or more")
        if not 0 < self.rho < 1:
            raise InputError(f"rho = {self.rho:g} must lie between 0 and 1")

    def __call__(
        self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, start: Images, loss: RowLoss
    ) -> Outcome:
        """Walk from `start`, without those images that are broken on the way.

        Passes, each image: steps + 1 forward and steps backward, `eot` times; a broken one takes no more.
        """
        found = Outcome.nothing_yet(start)
        rows = torch.arange(len(x), device=x.device)
        here, gradient = self._look(model, start, y, rows, loss, with_gradient=True)
        found.improve_(rows, here)
        walkers = self._begin(x, y, rows, here, gradient, threat)
        judged = checkpoints(self.steps)
        for step in range(1, self.steps + 1):
            if self.stop_at_success and bool(here.broken.any()):
                walkers = walkers.only(~here.broken)
            if not len(walkers.rows):
                break
            walkers.move_(threat, MOMENTUM if step > 1 else 1.0)
            here, gradient = self._look(
                model, walkers.point, walkers.y, walkers.rows, loss, with_gradient=step < self.steps
            )
            found.improve_(walkers.rows, here)
            walkers.remember_(here.score, gradient)
            if step in judged:
                walkers.judge_(self.rho * judged[step])
        return found

    def _look(
        self, model: Classifier, point: Images, y: Labels, rows: Counts, loss: RowLoss, *, with_gradient: bool
    ) -> tuple[Outcome, Images]:
        """Return what the model says of a point, averaged over `eot` passes, and the summed gradient."""
        gradient = torch.zeros_like(point)
        said, height = [], []
        for _ in range(self.eot):
            leaf = point.detach().requires_grad_(with_gradient)
            with torch.set_grad_enabled(with_gradient), for_images(rows):
                logits = model(leaf)
                value = loss(logits, rows)
            if with_gradient:
                gradient += input_gradient(value, leaf)
            said.append(logits.detach())
            height.append(value.detach())
        mean, score = torch.stack(said).mean(0), torch.stack(height).mean(0)
        if score.isnan().any():
            raise RunError("an attack met NaN; does the model return NaN or infinite logits?")
        margin = Margin()(mean, mean, y)
        return Outcome(point, mean.argmax(1) != y, score, margin), gradient

    def _begin(
        self, x: Images, y: Labels, rows: Counts, here: Outcome, gradient: Images, threat: ThreatModel
    ) -> Walkers:
        return Walkers(
            rows=rows,
            x=x,
            y=y,
            point=here.images,
            previous=here.images,
            gradient=gradient,
            loss=here.score,
            best=here.images,
            best_gradient=gradient,
            best_loss=here.score,
            step_size=torch.full_like(here.score, FIRST_STEP * threat.eps),
            rises=torch.zeros_like(here.score),
            checked_loss=here.score,
            halved=torch.ones_like(here.broken),
        )


def checkpoints(steps: int) -> dict[int, int]:
    """Return the steps after which step sizes are judged, each with the number of steps since the one before.

    Source: Croce & Hein 2020, section 3.3: 22 % of the steps, then 3 % fewer each time, but at least 6 %.
    """
    window, fewer, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    at, found = 0, {}
    while at + window <= steps:
        at += window
        found[at] = window
        window = max(window - fewer, least)
    return found


@torch.no_grad()
def mean_logits(model: Classifier, x: Images, eot: int) -> Logits:
    """Return logits averaged over `eot` passes; those of one pass for models that always answer the same."""
    total = model(x)
    for _ in range(eot - 1):
        total = total + model(x)
    return total / eot if eot > 1 else total


def start_at_edge(x: Images, threat: ThreatModel, rng: Generator) -> Images:
    """Draw a start on the border of the ball: a random direction, lengthened until its norm is eps."""
    if threat.norm == "linf":
        way: Tensor = 2 * torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype) - 1
        way = way / way.flatten(1).abs().amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    else:
        way = threat.steepest(torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype))
    return threat.project(x + threat.eps * way, x)
