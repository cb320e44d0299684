"""R-ADMM: adversarial training towards a sparse copy (Ye et al. 2019)."""

import copy
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.pruning.method import LearnerNetwork, PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.callbacks import Callback
from sparsemble.training.loss import LossOutput, TrainingLoss
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.schedule import Schedule


@final
@pruning_methods.register("radmm")
@dataclass(frozen=True, kw_only=True)
class RADMM(PruningMethod):
    """Trains all weights under the robust loss plus rho / 2 |W - Z + U|^2, where Z is a sparse copy of W; then prunes.

    Every `every` epochs Z becomes the target's projection of W + U, U grows by W - Z, and rho by `growth`.

    Source: Ye et al. 2019, section 4, with its settings. Departs: the learning rate falls once over the whole training,
    not anew after each update; the given scores are ignored.
    """

    epochs: int = 200
    """Epochs of training, >= 1."""
    every: int = 20
    """Epochs between two updates of Z and U, >= 1."""
    rho: float = 1e-3
    """Initial weight of the distance to Z, > 0."""
    growth: float = 1.3
    """Factor of rho at each update, >= 1."""
    schedule: Schedule = Schedule(
        learning_rate=0.01, optimiser=SGD(weight_decay=1e-4), lr_schedule=MultiStep(factor=0.1, milestones=(0.5, 0.75))
    )
    """Of the training; the batch size is that of the context."""

    def __post_init__(self) -> None:
        check_at_least(1, epochs=self.epochs, every=self.every, growth=self.growth)
        check_above_zero(rho=self.rho)

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Train towards the sparse copy, then prune."""
        batches = context.images(self.name)
        target.mask(scores)  # refuses impossible scores before any work
        learner = ADMMNetwork(copy.deepcopy(model), target, self.rho)
        loss = _ADMMLoss(inner=context.loss, learner=learner)
        callbacks = [_DualUpdate(learner, self.every, self.growth)]
        history = context.fit(learner, loss, batches, self.schedule, epochs=self.epochs, callbacks=callbacks)
        mask = target.mask({name: layer.weight.detach().abs() for name, layer in learner.layers.items()})
        mask.apply_(learner.network)
        return PruningResult(learner.network, mask, history)


@final
class ADMMNetwork(LearnerNetwork):
    """A network with a sparse copy Z of its weights and the scaled dual variable U, the sum of their differences."""

    rho: Tensor

    def __init__(self, network: nn.Module, target: SparsityTarget, rho: float) -> None:
        super().__init__(network, target)
        self.register_buffer("rho", torch.tensor(rho))
        for name, layer in self.layers.items():
            key = name.replace(".", "/")  # names of modules contain dots, those of buffers must not
            self.register_buffer(f"Z {key}", torch.zeros_like(layer.weight))
            self.register_buffer(f"U {key}", torch.zeros_like(layer.weight))
        self._project_()

    def auxiliary(self, name: str) -> tuple[Tensor, Tensor]:
        """Return Z and U of a layer."""
        key = name.replace(".", "/")
        return self.get_buffer(f"Z {key}"), self.get_buffer(f"U {key}")

    def distance(self) -> Tensor:
        """Return rho / 2 times the squared distance of the weights from Z - U, a scalar."""
        total = torch.zeros((), device=self.rho.device)
        for name, layer in self.layers.items():
            z, u = self.auxiliary(name)
            total = total + (layer.weight - z + u).square().sum()
        return self.rho / 2 * total

    @torch.no_grad()
    def update_(self) -> None:
        """Set Z to the sparse projection of W + U, then add W - Z to U."""
        self._project_()
        for name, layer in self.layers.items():
            z, u = self.auxiliary(name)
            u.add_(layer.weight - z)

    @torch.no_grad()
    def _project_(self) -> None:
        shifted = {name: layer.weight + self.auxiliary(name)[1] for name, layer in self.layers.items()}
        mask = self.target.mask({name: weight.abs() for name, weight in shifted.items()})
        for name in self.layers:
            self.auxiliary(name)[0].copy_(shifted[name] * mask[name])


@final
@dataclass(frozen=True, kw_only=True)
class _ADMMLoss(TrainingLoss):
    """A robust loss plus the distance of the weights from Z - U."""

    inner: TrainingLoss
    learner: ADMMNetwork

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss."""
        output = self.inner(model, x, y, threat, rng=rng)
        distance = self.learner.distance()
        return replace(output, loss=output.loss + distance, terms={**output.terms, "distance": distance.detach()})


@final
class _DualUpdate(Callback):
    """Updates Z, U and rho every few epochs."""

    def __init__(self, learner: ADMMNetwork, every: int, growth: float) -> None:
        self.learner, self.every, self.growth = learner, every, growth

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Update, if it is time."""
        if epoch % self.every == 0 and epoch < epochs:
            self.learner.update_()
            self.learner.rho *= self.growth
