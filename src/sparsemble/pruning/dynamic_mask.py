"""Dynamic sparse training: networks that stay sparse while weights are dropped and others grow."""

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.argument_checks import check_above_zero, check_at_least, check_interval
from sparsemble.core.errors import InputError
from sparsemble.pruning.mask import Mask
from sparsemble.pruning.method import LearnerNetwork, PruningContext, PruningMethod, PruningResult
from sparsemble.pruning.score import Scores, fan_in
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.callbacks import Callback
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.schedule import Schedule

REGROWN_SCALE = 0.1
"""Size of the weights of a regrown channel, as a share of He's; from 0 its BatchNorm would divide by 0."""


@final
class DynamicNetwork(LearnerNetwork):
    """A network, set to 0 outside its present mask, and the number of steps it was trained."""

    steps: Tensor

    def __init__(self, network: nn.Module, mask: Mask, target: SparsityTarget) -> None:
        super().__init__(network, target)
        self.register_buffer("steps", torch.tensor(0))
        for name, keep in mask.items():
            self.register_buffer(_buffer(name), keep.clone().to(self.layers[name].weight.device))
        self.first_counts = {name: int(keep.sum()) for name, keep in mask.items()}
        self.apply_mask_()

    def keep(self, name: str) -> Tensor:
        """Return the present mask of a layer."""
        return self.get_buffer(_buffer(name))

    def mask(self) -> Mask:
        """Return a copy of the present mask."""
        return Mask({name: self.keep(name).clone() for name in self.layers})

    def magnitudes(self) -> dict[str, Tensor]:
        """Return |w| where the mask keeps a weight, and -1 elsewhere."""
        return {
            name: torch.where(self.keep(name), layer.weight.detach().abs(), -1.0) for name, layer in self.layers.items()
        }

    @torch.no_grad()
    def apply_mask_(self) -> None:
        """Set the weights outside the mask to 0."""
        for name, layer in self.layers.items():
            layer.weight.mul_(self.keep(name))

    @torch.no_grad()
    def update_mask_(self, drop: float, counts: Mapping[str, int] | None, rng: Generator) -> None:
        """Drop the smallest weights and let others grow, which start at 0.

        Args:
            drop: share of the kept weights of each layer to drop, in [0, 1].
            counts: weights that each layer keeps afterwards; by default as many as before.
            rng: draws the weights that grow; those just dropped come last.
        """
        if self.target.granularity.whole_channels:
            self._update_channels_(drop, rng)
            return
        for name, size in self.magnitudes().items():
            keep = self.keep(name)
            nonzeros = int(keep.sum())
            stay = self.target.keep(name, size, nonzeros - round(drop * nonzeros))
            draw = torch.rand(keep.shape, generator=rng, device=keep.device)
            priority = torch.where(stay, 2.0, torch.where(keep, draw - 1, draw))
            count = nonzeros if counts is None else counts[name]
            self._set_mask_(name, self.target.keep(name, priority, max(count, 1)), rng, 0.0)

    def _update_channels_(self, drop: float, rng: Generator) -> None:
        """Let removed channels, with random priorities, compete with the kept ones of the smallest weights."""
        priority = {}
        for name, size in self.magnitudes().items():
            draw = drop * torch.rand(len(size), generator=rng, device=size.device)
            shaped = draw.view(-1, *[1] * (size.ndim - 1))
            priority[name] = torch.where(size < 0, shaped, size / size.max().clamp_min(1e-12))
        for name, keep in self.target.mask(priority).items():
            self._set_mask_(name, keep, rng, REGROWN_SCALE)

    def _set_mask_(self, name: str, keep: Tensor, rng: Generator, scale: float) -> None:
        """Change the mask of a layer; grown weights are drawn at a share of He's size."""
        weight, grown = self.layers[name].weight, keep & ~self.keep(name)
        if scale:
            draw = torch.randn(weight.shape, generator=rng, device=weight.device)
            weight.copy_(torch.where(grown, scale * math.sqrt(2 / fan_in(weight)) * draw, weight))
        self.keep(name).copy_(keep)
        weight.mul_(keep)


@final
class UpdateSchedule:
    """When the mask is updated, and by how much: by a share that falls from `first` to `last` along a cosine."""

    def __init__(self, *, steps: int, every: int, first: float, last: float, rest: float) -> None:
        self.end = max(int(steps * (1 - rest)), 1)
        self.every, self.first, self.last = every, first, last
        self.not_regrown = 0.0
        """Share of the dropped weights that is not regrown; below 0: grows in addition."""

    def drop_at(self, step: int) -> float:
        """Return the share to drop after this step; 0 where the mask is not updated."""
        if step % self.every or step > self.end:
            return 0.0
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * step / self.end)) / 2

    def counts(self, learner: DynamicNetwork, drop: float) -> dict[str, int] | None:
        """Return how many weights each layer keeps after an update; None: as many as before."""
        if int(learner.steps) + self.every > self.end:
            return learner.first_counts  # the last update restores the target
        if not self.not_regrown:
            return None
        capacity = learner.target.granularity.capacity
        return {
            name: min(
                max(nonzeros - round(self.not_regrown * drop * nonzeros), 1), capacity(tuple(learner.keep(name).shape))
            )
            for name, nonzeros in ((name, int(learner.keep(name).sum())) for name in learner.layers)
        }


@final
class _MaskUpdates(Callback):
    """Applies the mask after every step, and updates it on schedule."""

    def __init__(self, learner: DynamicNetwork, updates: UpdateSchedule, rng: Generator) -> None:
        self.learner, self.updates, self.rng = learner, updates, rng

    def after_step(self, model: nn.Module) -> None:
        """Apply the mask, and update it if it is time."""
        learner = self.learner
        learner.apply_mask_()
        learner.steps += 1
        drop = self.updates.drop_at(int(learner.steps))
        if drop:
            learner.update_mask_(drop, self.updates.counts(learner, drop), self.rng)


@dataclass(frozen=True, kw_only=True)
class DynamicTraining(PruningMethod):
    """What methods of dynamic sparse training share: all but how the number of kept weights is adapted."""

    epochs: int = 200
    """Epochs of training, >= 1."""
    every: float = 2.3
    """Epochs between two mask updates, > 0; 2.3 is 900 steps on CIFAR-10 with batches of 128."""
    start: Literal["random", "scores"] = "random"
    """First mask: random, or that of the highest scores."""
    drop: float = 0.5
    """Share of the kept weights that the first update drops, in (0, 1); falls along a cosine."""
    drop_last: float = 0.005
    """Share that it falls to, in (0, drop]."""
    rest: float = 0.25
    """Share of the training, at its end, in which the mask is fixed, in [0, 1)."""
    schedule: Schedule = Schedule(
        learning_rate=0.1, optimiser=SGD(weight_decay=5e-4), lr_schedule=MultiStep(factor=0.1, milestones=(0.5, 0.75))
    )
    """Of the training; the batch size is that of the context."""

    def __post_init__(self) -> None:
        check_at_least(1, epochs=self.epochs)
        check_above_zero(every=self.every)
        check_interval("[0, 1)", rest=self.rest)
        if not 0 < self.drop_last <= self.drop < 1:
            raise InputError(f"drop_last = {self.drop_last:g} and drop = {self.drop:g} must rise within (0, 1)")

    @final
    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Train while weights are dropped and regrown; the result is exactly as sparse as the first mask."""
        batches = context.images(self.name)
        start = first_mask(scores, target, context.rng if self.start == "random" else None)
        learner = DynamicNetwork(copy.deepcopy(model), start, target)
        updates = UpdateSchedule(
            steps=self.epochs * len(batches),
            every=max(round(self.every * len(batches)), 1),
            first=self.drop,
            last=self.drop_last,
            rest=self.rest,
        )
        callbacks = [_MaskUpdates(learner, updates, context.rng), *self._monitors(learner, updates, context)]
        history = context.fit(learner, context.loss, batches, self.schedule, epochs=self.epochs, callbacks=callbacks)
        mask = final_mask(learner)
        mask.apply_(learner.network)
        return PruningResult(learner.network, mask, history)

    @abstractmethod
    def _monitors(self, learner: DynamicNetwork, updates: UpdateSchedule, context: PruningContext) -> list[Callback]:
        """Return what changes `updates` after an epoch."""


def first_mask(scores: Scores, target: SparsityTarget, rng: Generator | None) -> Mask:
    """Return the mask of the highest scores, or with `rng` of random ones.

    Args:
        scores: of the weights, by layer; checked in any case.
        target: the sparsity.
        rng: draws the scores, if given.
    """
    mask = target.mask(scores)
    if rng is None:
        return mask
    drawn = {n: torch.rand(score.shape, generator=rng, device=score.device) for n, score in scores.items()}
    return target.mask(drawn)


def final_mask(learner: DynamicNetwork) -> Mask:
    """Return the mask at the end of training, made exact where it is not."""
    mask = learner.mask()
    if {name: int(keep.sum()) for name, keep in mask.items()} == learner.first_counts:
        return mask
    return learner.target.mask({name: size + 1 for name, size in learner.magnitudes().items()})


def _buffer(name: str) -> str:
    """Return the name of a layer's buffer; names of modules contain dots, those of buffers must not."""
    return "keep " + name.replace(".", "/")
