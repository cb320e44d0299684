"""HARP: learn scores and the keep rate of every layer under one budget (Zhao and Wressnegger 2023)."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.argument_checks import check_at_least, check_interval
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.pruning.layer_rates import KeepRates
from sparsemble.pruning.learned_mask import ScoredNetwork, with_cached_masks
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores, rescale
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.callbacks import Callback
from sparsemble.training.loss import LossOutput, TrainingLoss
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.schedule import Schedule

MAX_SHIFT = 60.0
"""Shift of a quota that moves any keep rate to its floor or to 1."""


@final
@pruning_methods.register("harp")
@dataclass(frozen=True, kw_only=True)
class HARP(PruningMethod):
    """Learns scores and the keep rate of each layer under the robust loss; of the weights only BatchNorm's are trained.

    The target's own division of the budget among layers is ignored.

    Source: EED main paper, eq. 6; EED supplement, eqs. 23-28. Departs: only keep rates are learned, from a floor on the
    kept share; the budget is met exactly by a final projection (`projected_keep_rates`); the last epoch is taken, not
    one chosen on test images.
    """

    epochs: int = 20
    """Epochs of mask learning, >= 1."""
    schedule: Schedule = Schedule(learning_rate=0.1, lr_schedule=Cosine())
    """Of scores and keep rates; the batch size is that of the context."""
    penalty: float = 0.01
    """phi, weight of the budget term, >= 0; grows by itself every epoch until the budget is met."""
    floor: float = 0.1
    """Lowest keep rate of a layer, as a share of the target keep rate, in (0, 1)."""
    initial_keep: float = 2.0
    """Initial keep rate of every layer, as a multiple of the target, above `floor`; HARP: 0.10 for 0.05."""

    def __post_init__(self) -> None:
        check_at_least(1, epochs=self.epochs)
        check_at_least(0, penalty=self.penalty)
        check_interval("(0, 1)", floor=self.floor)
        if not self.initial_keep > self.floor:
            raise InputError(f"initial_keep = {self.initial_keep:g} must be above floor = {self.floor:g}")

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Learn the mask."""
        batches = context.images(self.name)
        dense_mask = target.mask(scores)  # refuses impossible scores before any work
        if target.sparsity == 0:
            return PruningResult(copy.deepcopy(model), dense_mask, [])
        rates = self.initial_rates(scores, target)
        learner = ScoredNetwork(copy.deepcopy(model), rescale(scores), target, free_norms=True, keep_rates=rates)
        budget = BudgetTerm(rates, target, self.penalty)
        loss = _BudgetLoss(inner=with_cached_masks(context.loss, learner.layers), budget=budget)
        history = context.fit(learner, loss, batches, self.schedule, epochs=self.epochs, callbacks=[budget])
        mask = learner.final_mask(projected_keep_rates(rates))
        return PruningResult(learner.pruned_(mask), mask, history)

    def initial_rates(self, scores: Scores, target: SparsityTarget) -> "dict[str, KeepRate]":
        """Return the keep rate of each layer before learning: `initial_keep` times the target, at most halfway to 1."""
        keep = 1 - target.sparsity
        minimum = self.floor * keep
        start = min(self.initial_keep * keep, 0.5 * (1 + keep))
        quota = math.log((start - minimum) / (1 - start))
        return {name: KeepRate(quota, minimum).to(score.device) for name, score in scores.items()}


@final
class KeepRate(nn.Module):
    """The learned keep rate g(r) of a layer: minimum + (1 - minimum) sigmoid(quota).

    Source: EED supplement, eqs. 23-24. Departs: the floor is on the kept share; as printed, on the pruned share.
    """

    def __init__(self, quota: float, minimum: float) -> None:
        super().__init__()
        self.quota = nn.Parameter(torch.tensor(quota))
        self.minimum = minimum

    def forward(self) -> Tensor:
        """Return the keep rate, a scalar in [minimum, 1]."""
        return self.minimum + (1 - self.minimum) * self.quota.sigmoid()


@torch.no_grad()
def projected_keep_rates(rates: Mapping[str, KeepRate]) -> KeepRates:
    """Return keep rates in which all quotas are shifted by one amount, rising with the level from floor to 1.

    The exact mask takes the highest level that meets the budget. Source: ours.
    """
    # A quota can diverge; beyond half of the largest shift it is practically infinite, and could not be shifted.
    quotas = {name: float(rate.quota.clamp(-MAX_SHIFT / 2, MAX_SHIFT / 2)) for name, rate in rates.items()}
    minimum = next(iter(rates.values())).minimum

    def at_level(level: float) -> dict[str, float]:
        shift = MAX_SHIFT * (2 * level - 1)
        return {name: minimum + (1 - minimum) / (1 + math.exp(-(quota + shift))) for name, quota in quotas.items()}

    return at_level


@final
class BudgetTerm(Callback):
    """The budget term L_p and its weight, which grows by phi every epoch until the violation is 0 at 4 decimals."""

    def __init__(self, rates: Mapping[str, KeepRate], target: SparsityTarget, penalty: float) -> None:
        self.rates, self.target, self.penalty = rates, target, penalty
        self.weight, self.met = torch.tensor(penalty), False

    def violation(self) -> Tensor:
        """Return L_p: the share by which the kept weights exceed the budget, at least 0.

        Source: EED supplement, eq. 25. Departs: a differentiable count.
        """
        return self.target.budget_violation(torch.stack([rate() for rate in self.rates.values()]))

    @torch.no_grad()
    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Raise the weight, or stop raising it for good."""
        self.met |= round(float(self.violation()), 4) == 0
        if not self.met:
            self.weight = torch.tensor(self.penalty * (epoch + 1))

    def state(self) -> dict[str, Tensor]:
        """Return the weight, and whether the budget was ever met."""
        return {"weight": self.weight, "met": torch.tensor(self.met)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set both."""
        self.weight, self.met = state["weight"].clone(), bool(state["met"])


@final
@dataclass(frozen=True, kw_only=True)
class _BudgetLoss(TrainingLoss):
    """A robust loss plus the weighted budget term."""

    inner: TrainingLoss
    budget: BudgetTerm

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss."""
        output = self.inner(model, x, y, threat, rng=rng)
        violation = self.budget.violation()
        weight = self.budget.weight.to(violation.device)
        terms = {**output.terms, "budget_violation": violation.detach(), "budget_weight": weight}
        return replace(output, loss=output.loss + weight * violation, terms=terms)
