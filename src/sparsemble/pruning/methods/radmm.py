"""R-ADMM: adversarial training towards a sparse copy (Ye et al. 2019)."""

import copy
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, Logits
from sparsemble.pruning.mask import prunable_layers
from sparsemble.pruning.method import PruningContext, PruningMethod, PruningResult, pruning_methods
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.callbacks import Callback
from sparsemble.training.fit import fit
from sparsemble.training.loss import LossOutput, TrainingLoss
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.schedule import Schedule


@final
@pruning_methods.register("radmm")
@dataclass(frozen=True, kw_only=True)
class RADMM(PruningMethod):
    """Trains all weights under the robust loss plus rho / 2 |W - Z + U|^2, where Z is sparse and follows W; then cuts.

    Every `every` epochs Z becomes the target's projection of W + U, U grows by W - Z, and rho by `growth`.

    Source: Ye et al. 2019, section 4, with the settings of method.md section 4. Departs: the rate falls once over the
    whole training, not anew after each update; scores it is given are not looked at.
    """

    epochs: int = 200
    """Epochs of training, >= 1."""
    every: int = 20
    """Epochs between two updates of Z and U, >= 1."""
    rho: float = 1e-3
    """First weight of the distance to Z, > 0."""
    growth: float = 1.3
    """What each update multiplies rho by, >= 1."""
    schedule: Schedule = Schedule(
        learning_rate=0.01, optimiser=SGD(weight_decay=1e-4), lr_schedule=MultiStep(factor=0.1, milestones=(0.5, 0.75))
    )
    """Of the training; the batch size of the context holds, not this one's."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.every < 1:
            raise InputError(f"epochs = {self.epochs} and every = {self.every} must be 1 or more")
        if not self.rho > 0 or not self.growth >= 1:
            raise InputError(f"rho = {self.rho:g} must be above 0 and growth = {self.growth:g} 1 or more")

    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Train and cut."""
        batches = context.images(self.name)
        target.mask(scores)  # refuses what cannot be before any work
        learner = ADMMNetwork(copy.deepcopy(model), target, self.rho)
        history = fit(
            learner,
            _ADMMLoss(inner=context.loss, learner=learner),
            batches,
            self.schedule,
            epochs=self.epochs,
            threat=context.threat,
            rng=context.rng,
            callbacks=[_DualUpdate(learner, self.every, self.growth), *context.callbacks],
            checkpoint=context.checkpoint,
            precision=context.precision,
        )
        mask = target.mask({name: layer.weight.detach().abs() for name, layer in learner.layers.items()})
        mask.apply_(learner.network)
        return PruningResult(learner.network, mask, history)


@final
class ADMMNetwork(nn.Module):
    """A network with the sparse copy Z of its weights and the sum U of what they differed by."""

    rho: Tensor

    def __init__(self, network: nn.Module, target: SparsityTarget, rho: float) -> None:
        super().__init__()
        self.network, self.target = network, target
        self.layers = prunable_layers(network)
        self.register_buffer("rho", torch.tensor(rho))
        for name, layer in self.layers.items():
            key = name.replace(".", "/")  # module names hold dots, names of buffers must not
            self.register_buffer(f"sparse {key}", torch.zeros_like(layer.weight))
            self.register_buffer(f"sum {key}", torch.zeros_like(layer.weight))
        self._project_()

    def forward(self, x: Images) -> Logits:
        """Return the logits of the network as it is, not sparse yet."""
        logits: Logits = self.network(x)
        return logits

    def parts(self, name: str) -> tuple[Tensor, Tensor]:
        """Return Z and U of a layer."""
        key = name.replace(".", "/")
        return self.get_buffer(f"sparse {key}"), self.get_buffer(f"sum {key}")

    def distance(self) -> Tensor:
        """Return rho / 2 times the squared distance of the weights from Z - U."""
        total = torch.zeros((), device=self.rho.device)
        for name, layer in self.layers.items():
            sparse, summed = self.parts(name)
            total = total + (layer.weight - sparse + summed).square().sum()
        return self.rho / 2 * total

    @torch.no_grad()
    def update_(self) -> None:
        """Make Z the projection of W + U, and add what W differs by to U."""
        self._project_()
        for name, layer in self.layers.items():
            sparse, summed = self.parts(name)
            summed.add_(layer.weight - sparse)

    @torch.no_grad()
    def _project_(self) -> None:
        wanted = {name: layer.weight + self.parts(name)[1] for name, layer in self.layers.items()}
        mask = self.target.mask({name: weight.abs() for name, weight in wanted.items()})
        for name in self.layers:
            self.parts(name)[0].copy_(wanted[name] * mask[name])


@final
@dataclass(frozen=True, kw_only=True)
class _ADMMLoss(TrainingLoss):
    """A robust loss plus the distance."""

    inner: TrainingLoss
    learner: ADMMNetwork

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss."""
        output = self.inner(model, x, y, threat, rng=rng)
        distance = self.learner.distance()
        return replace(output, loss=output.loss + distance, terms={**output.terms, "distance": distance.detach()})


@final
class _DualUpdate(Callback):
    """Updates Z, U and rho now and then."""

    def __init__(self, learner: ADMMNetwork, every: int, growth: float) -> None:
        self.learner, self.every, self.growth = learner, every, growth

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Update, if it is time."""
        if epoch % self.every == 0 and epoch < epochs:
            self.learner.update_()
            self.learner.rho *= self.growth
