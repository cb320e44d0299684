"""Dynamic sparse training: networks that stay sparse while weights are dropped and others grow."""

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.pruning.mask import Mask
from sparsemble.pruning.method import LearnerNetwork, PruningContext, PruningResult
from sparsemble.pruning.score import Scores, fan_in
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback
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
class MaskUpdates(Callback):
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


def check_settings(epochs: int, every: float, drop: float, drop_last: float, rest: float) -> None:
    """Check the settings that all methods of dynamic sparse training share.

    Args:
        epochs: of the training, >= 1.
        every: epochs between two mask updates, > 0.
        drop: share of the kept weights that the first update drops, in (0, 1).
        drop_last: share that it falls to, in (0, drop].
        rest: share of the training in which the mask is fixed, in [0, 1).

    Raises:
        InputError: a setting is outside its range.
    """
    if epochs < 1 or not every > 0:
        raise InputError(f"epochs = {epochs} must be 1 or more and every = {every:g} above 0")
    if not 0 < drop_last <= drop < 1:
        raise InputError(f"drop_last = {drop_last:g} and drop = {drop:g} must rise within (0, 1)")
    if not 0 <= rest < 1:
        raise InputError(f"rest = {rest:g} must lie in [0, 1)")


def train_dynamic(
    learner: DynamicNetwork,
    updates: UpdateSchedule,
    context: PruningContext,
    batches: Batches,
    schedule: Schedule,
    *,
    epochs: int,
    monitor: Callback | None = None,
) -> PruningResult:
    """Train a sparse network while its mask is updated.

    Args:
        learner: the network and its first mask; trained in place.
        updates: when and how the mask is updated.
        context: loss, threat model and training settings.
        batches: training images.
        schedule: optimiser and learning rates.
        epochs: passes over the batches, >= 1.
        monitor: called after the mask updates, to change `updates`.

    Returns:
        The network, exactly as sparse as the first mask.
    """
    callbacks = [MaskUpdates(learner, updates, context.rng), *([monitor] if monitor else [])]
    history = context.fit(learner, context.loss, batches, schedule, epochs=epochs, callbacks=callbacks)
    mask = final_mask(learner)
    mask.apply_(learner.network)
    return PruningResult(learner.network, mask, history)


def first_mask(scores: Scores, target: SparsityTarget, rng: Generator | None) -> Mask:
    """Return the mask of the highest scores, or with `rng` of random ones.

    Args:
        scores: of the weights, by layer.
        target: the sparsity.
        rng: draws the scores, if given.

    Raises:
        InputError: scores that are NaN or of another network.
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
