"""HARP: learn scores and the keep rate of every layer under one budget (Zhao & Wressnegger 2023)."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, Logits
from sparsemble.pruning.learned_mask import cached_weights, remove_masks_
from sparsemble.pruning.mask import Mask, prunable_layers
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores, rescale
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.callbacks import Callback
from sparsemble.training.fit import fit
from sparsemble.training.loss import LossOutput, TrainingLoss
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.schedule import Schedule

FARTHEST = 60.0
"""Shift of a quota that takes any keep rate to its floor or to 1."""


@final
@pruning_methods.register("harp")
@dataclass(frozen=True, kw_only=True)
class HARP(PruningMethod):
    """Scores and per-layer keep rates learned under the robust loss, weights frozen, BatchNorm's affine part free.

    Source: EED main paper, eq. 6; supplement, eqs. 23-25, with keep rates throughout. Departs: the budget is
    met exactly by a last projection (one shift of all quotas), and the last epoch is taken, not one chosen on test.
    """

    epochs: int = 20
    """Epochs of mask learning, >= 1."""
    schedule: Schedule = Schedule(learning_rate=0.1, lr_schedule=Cosine())
    """HARP's own rate; the batch size of the context holds, not this one's."""
    penalty: float = 0.01
    """phi, weight of the budget term; grows by itself every epoch until the budget is met."""
    floor: float = 0.1
    """Least keep rate of a layer, as a share of the target keep rate, in (0, 1)."""
    initial_keep: float = 2.0
    """Keep rate of every layer at the start, as a multiple of the target, above `floor`; HARP: 0.10 for 0.05."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.penalty < 0:
            raise InputError(f"epochs = {self.epochs} must be 1 or more and penalty = {self.penalty:g} 0 or more")
        if not 0 < self.floor < 1 or not self.initial_keep > self.floor:
            raise InputError(
                f"floor = {self.floor:g} must lie in (0, 1) and initial_keep = {self.initial_keep:g} above it"
            )

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Learn the mask; rates are learned too, whatever those of the target."""
        batches = context.images(self.name)
        start = target.mask(scores)  # refuses what cannot be before any work
        if target.sparsity == 0:
            return PruningResult(copy.deepcopy(model), start, [])
        learner = LearnedMasks(copy.deepcopy(model), rescale(scores), target, self)
        ramp = _Ramp(learner)
        history = fit(
            learner,
            _Budgeted(inner=context.loss, learner=learner),
            batches,
            self.schedule,
            epochs=self.epochs,
            threat=context.threat,
            rng=context.rng,
            callbacks=[ramp, *context.callbacks],
            checkpoint=context.checkpoint,
            precision=context.precision,
        )
        mask = learner.final_mask()
        pruned = learner.plain()
        mask.apply_(pruned)
        return PruningResult(pruned, mask, history)


@final
class LearnedMasks(nn.Module):
    """A model whose weights are frozen and seen through masks that are learned."""

    ramp: Tensor
    ramp_stopped: Tensor

    def __init__(self, network: nn.Module, scores: Scores, target: SparsityTarget, settings: HARP) -> None:
        super().__init__()
        self.target = target
        keep = 1 - target.sparsity
        least = settings.floor * keep
        start = min(settings.initial_keep * keep, 0.5 * (1 + keep))
        quota = math.log((start - least) / (1 - start))
        norms = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in norms)
        self.network = network
        self.layers = prunable_layers(network)
        self.masks = {}
        for name, layer in self.layers.items():
            self.masks[name] = _LayerMask(name, scores[name], quota, least, target)
            parametrize.register_parametrization(layer, "weight", self.masks[name])
        self.register_buffer("ramp", torch.tensor(settings.penalty))
        self.register_buffer("ramp_stopped", torch.tensor(False))
        self.step = settings.penalty

    def forward(self, x: Images) -> Logits:
        """Return the logits of the masked network."""
        logits: Logits = self.network(x)
        return logits

    def budget_violation(self) -> Tensor:
        """L_p: by what share the kept weights exceed the budget, at least 0 (method.md 2.2)."""
        return self.target.budget_violation(torch.stack([mask.keep for mask in self.masks.values()]))

    @torch.no_grad()
    def final_mask(self) -> Mask:
        """Shift all quotas by one amount until the budget is met."""
        # A quota can run away; beyond half of the farthest shift it is as good as infinite, and could not be shifted.
        quotas = {name: float(mask.quota.clamp(-FARTHEST / 2, FARTHEST / 2)) for name, mask in self.masks.items()}
        least = next(iter(self.masks.values())).least

        def rates(level: float) -> dict[str, float]:
            shift = FARTHEST * (2 * level - 1)
            return {name: least + (1 - least) / (1 + math.exp(-(quota + shift))) for name, quota in quotas.items()}

        return self.target.mask({name: mask.scores.abs() for name, mask in self.masks.items()}, rates)

    def plain(self) -> nn.Module:
        """Take the parametrization off and return the network with its original weights, all trainable."""
        return remove_masks_(self.network, self.layers)


@final
class _LayerMask(nn.Module):
    """Weight times a 0/1 mask of its learned scores; gradients pass straight through the mask."""

    def __init__(self, name: str, scores: Tensor, quota: float, least: float, target: SparsityTarget) -> None:
        super().__init__()
        self.name = name
        self.scores = nn.Parameter(scores.clone())
        self.quota = nn.Parameter(torch.tensor(quota, device=scores.device))
        self.least = least
        self.target = target

    @property
    def keep(self) -> Tensor:
        """g(r): the keep rate, between the floor and 1."""
        return self.least + (1 - self.least) * self.quota.sigmoid()

    def forward(self, weight: Tensor) -> Tensor:
        pruned = math.floor((1 - float(self.keep.detach())) * weight.numel())
        hard = self.target.keep(self.name, self.scores.detach().abs(), weight.numel() - pruned)
        # Equal to the 0/1 mask in value; its gradient reaches |s| one by one and k as the sum.
        straight = self.scores.abs() + self.keep
        return weight * (hard.to(weight.dtype) + (straight - straight.detach()))


@final
@dataclass(frozen=True, kw_only=True)
class _Budgeted(TrainingLoss):
    """A robust loss plus the ramped budget term."""

    inner: TrainingLoss
    learner: LearnedMasks

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss; the masks are worked out once a batch, for crafting and training alike."""
        with cached_weights(self.learner.layers):
            output = self.inner(model, x, y, threat, rng=rng)
        budget_violation = self.learner.budget_violation()
        terms = {**output.terms, "excess": budget_violation.detach()}
        return replace(output, loss=output.loss + self.learner.ramp * budget_violation, terms=terms)


@final
class _Ramp(Callback):
    """Raises the weight of the budget term by phi every epoch until the excess rounds to 0 at 4 decimals."""

    def __init__(self, learner: LearnedMasks) -> None:
        self.learner = learner

    @torch.no_grad()
    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Raise the weight, or stop raising it for good."""
        if round(float(self.learner.budget_violation()), 4) == 0:
            self.learner.ramp_stopped.fill_(True)
        if not self.learner.ramp_stopped:
            self.learner.ramp.fill_(self.learner.step * (epoch + 1))
