"""Projected gradient descent (Madry et al. 2018)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import Attack, attacks, input_gradient
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.loss import AttackLoss
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels


@final
@attacks.register("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Repeated steps up the loss, projected back into the threat model.

    Source: Madry et al. 2018, section 2.1. Departs: keeps the best point of the path over all restarts
    (misclassified before correct, then the higher loss), where `keep_best` is on.
    """

    steps: int = 20
    """Gradient steps, >= 1."""
    step_size: float = 0.25
    """Length of a step in units of eps, > 0; 0.25 is 2/255 at 8/255."""
    restarts: int = 1
    """Independent starts, >= 1."""
    random_start: bool = True
    """Start at a random allowed image, not at the clean one."""
    keep_best: bool = True
    """Return the best point of the path; off for training, where the last point is meant and one pass is saved."""
    loss: AttackLoss = CrossEntropy()
    """What the steps climb."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InputError(f"steps = {self.steps} and restarts = {self.restarts} must be 1 or more")
        if not self.step_size > 0:
            raise InputError(f"step_size = {self.step_size:g} must be above 0 (it is in units of eps)")
        if self.restarts > 1 and not (self.random_start and self.keep_best):
            raise InputError(f"restarts = {self.restarts} need random_start and keep_best")
        if not self.label:
            times = f"x{self.restarts}" if self.restarts > 1 else ""
            object.__setattr__(self, "label", f"pgd{self.steps}{times}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search from each start."""
        with torch.no_grad():
            clean_logits = model(x) if self.restarts > 1 or self.keep_best else torch.empty(0, 0, device=x.device)
        best, best_rank = x, torch.full((len(x),), -float("inf"), device=x.device)
        for _ in range(self.restarts):
            point = threat.random_start(x, rng) if self.random_start else x
            for step in range(self.steps + self.keep_best):
                point = point.detach().requires_grad_()
                logits = model(point)
                loss = self.loss(logits, clean_logits, y)
                if self.keep_best:
                    rank = _rank(loss.detach(), logits.detach(), y)
                    better = rank > best_rank
                    best = torch.where(better.view(-1, 1, 1, 1), point.detach(), best)
                    best_rank = torch.where(better, rank, best_rank)
                if step < self.steps:
                    gradient = input_gradient(loss, point)
                    move = self.step_size * threat.eps * threat.steepest(gradient)
                    point = threat.project(point.detach() + move, x)
        return best if self.keep_best else point


def _rank(loss: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Order points: misclassified above correct, then by loss squeezed into (-1, 1)."""
    return 2.0 * (logits.argmax(1) != y) + loss / (1 + loss.abs())
