"""Networks that stay sparse while their mask moves: weights are dropped and others grow."""

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.types import Images, Logits
from sparsemble.pruning.mask import Mask, prunable_layers
from sparsemble.pruning.score import Scores, fan_in
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.callbacks import Callback

NEW = 0.1
"""Size of the weights of a regrown channel, as a share of He's: at 0 its BatchNorm would divide by nothing."""


@final
class DynamicNetwork(nn.Module):
    """A network with the mask that its weights obey now, and how many steps it has seen."""

    steps: Tensor

    def __init__(self, network: nn.Module, mask: Mask, target: SparsityTarget) -> None:
        super().__init__()
        self.network, self.target = network, target
        self.layers = prunable_layers(network)
        self.register_buffer("steps", torch.tensor(0))
        for name, keep in mask.items():
            self.register_buffer(_buffer(name), keep.clone().to(self.layers[name].weight.device))
        self.first = {name: int(keep.sum()) for name, keep in mask.items()}
        self.apply_mask_()

    def forward(self, x: Images) -> Logits:
        """Return the logits of the sparse network."""
        logits: Logits = self.network(x)
        return logits

    def keep(self, name: str) -> Tensor:
        """Return the mask of a layer as it is now."""
        return self.get_buffer(_buffer(name))

    def mask(self) -> Mask:
        """Return the mask as it is now."""
        return Mask({name: self.keep(name).clone() for name in self.layers})

    def sizes(self) -> dict[str, Tensor]:
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
            counts: weights that each layer keeps afterwards; as many as before if not given.
            rng: draws what grows; what was just dropped comes last.
        """
        if self.target.granularity.whole_channels:
            self._update_channels_(drop, rng)
            return
        for name, size in self.sizes().items():
            keep = self.keep(name)
            kept = int(keep.sum())
            stay = self.target.keep(name, size, kept - round(drop * kept))
            draw = torch.rand(keep.shape, generator=rng, device=keep.device)
            worth = torch.where(stay, 2.0, torch.where(keep, draw - 1, draw))
            count = kept if counts is None else counts[name]
            self._set_mask_(name, self.target.keep(name, worth, max(count, 1)), rng, 0.0)

    def _update_channels_(self, drop: float, rng: Generator) -> None:
        """Let channels that are not there compete by a draw with those that are smallest."""
        worth = {}
        for name, size in self.sizes().items():
            draw = drop * torch.rand(len(size), generator=rng, device=size.device)
            shaped = draw.view(-1, *[1] * (size.ndim - 1))
            worth[name] = torch.where(size < 0, shaped, size / size.max().clamp_min(1e-12))
        for name, keep in self.target.mask(worth).items():
            self._set_mask_(name, keep, rng, NEW)

    def _set_mask_(self, name: str, keep: Tensor, rng: Generator, size: float) -> None:
        """Change the mask of a layer; weights that grow are drawn at a share of He's size."""
        weight, grown = self.layers[name].weight, keep & ~self.keep(name)
        if size:
            draw = torch.randn(weight.shape, generator=rng, device=weight.device)
            weight.copy_(torch.where(grown, size * math.sqrt(2 / fan_in(weight)) * draw, weight))
        self.keep(name).copy_(keep)
        weight.mul_(keep)


@final
class MaskUpdates(Callback):
    """Holds the mask after every step, and moves it now and then."""

    def __init__(self, learner: DynamicNetwork, plan: "UpdateSchedule", rng: Generator) -> None:
        self.learner, self.plan, self.rng = learner, plan, rng

    def after_step(self, model: nn.Module) -> None:
        """Hold, and move if it is time."""
        learner = self.learner
        learner.apply_mask_()
        learner.steps += 1
        drop = self.plan.drop_at(int(learner.steps))
        if drop:
            learner.update_mask_(drop, self.plan.counts(learner, drop), self.rng)


@final
class UpdateSchedule:
    """When the mask moves, and by how much.

    Args:
        steps: of the whole training.
        every: steps between two moves.
        first: share of the kept weights that the first move drops; falls along a cosine.
        last: share that it falls to.
        rest: share of the training, its end, in which the mask stands still.
    """

    def __init__(self, *, steps: int, every: int, first: float, last: float, rest: float) -> None:
        self.end = max(int(steps * (1 - rest)), 1)
        self.every, self.first, self.last = every, first, last
        self.faster = 0.0
        """Share of what is dropped that does not grow again; below 0: that grows in addition."""

    def drop_at(self, step: int) -> float:
        """Return the share to drop after this step; 0 where the mask stands still."""
        if step % self.every or step > self.end:
            return 0.0
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * step / self.end)) / 2

    def counts(self, learner: DynamicNetwork, drop: float) -> dict[str, int] | None:
        """Return how many weights each layer keeps after a move; None: as many as before."""
        if int(learner.steps) + self.every > self.end:
            return learner.first  # the last move ends where the target is
        if not self.faster:
            return None
        capacity = learner.target.granularity.capacity
        return {
            name: min(max(kept - round(self.faster * drop * kept), 1), capacity(tuple(learner.keep(name).shape)))
            for name, kept in ((name, int(learner.keep(name).sum())) for name in learner.layers)
        }


def first_mask(scores: Scores, target: SparsityTarget, rng: Generator | None) -> Mask:
    """Return the mask of the highest scores, or with `rng` of drawn ones.

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
    if {name: int(keep.sum()) for name, keep in mask.items()} == learner.first:
        return mask
    return learner.target.mask({name: size + 1 for name, size in learner.sizes().items()})


def _buffer(name: str) -> str:
    """Return the name of a layer's buffer; module names hold dots, names of buffers must not."""
    return "keep " + name.replace(".", "/")
