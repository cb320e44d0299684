"""Pruning methods: from a dense model and scores to a sparse model and its mask."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Generator, nn

from sparsemble.core.errors import InputError
from sparsemble.core.registry import Component, Registry
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Logits
from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.mask import Mask
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.fit import fit
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.precision import Precision
from sparsemble.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class PruningContext:
    """Data, loss and training settings of a method that learns while it prunes."""

    batches: Batches | None
    """Training images; none: only for methods that learn nothing."""
    loss: TrainingLoss
    """The robust loss."""
    threat: ThreatModel
    """Norm and radius of the adversarial images."""
    rng: Generator
    """Draws the order of images, attack starts and whatever the method draws."""
    held_out: Callable[[nn.Module], dict[str, float]] | None = None
    """Measures a model on held-out images: `held_out_clean` and `held_out_robust`, in [0, 1]."""
    callbacks: Sequence[Callback] = ()
    """Called by every training loop of the method, after its own callbacks."""
    checkpoint: Checkpoint | None = None
    """Where to keep the state of a long search; an existing one is resumed."""
    precision: Precision = Precision()
    """Number format and layout of what the method trains."""

    def images(self, method: str) -> Batches:
        """Return the training images."""
        if self.batches is None:
            raise InputError(f'method "{method}" learns while it prunes and needs training images; give it some')
        return self.batches

    def fit(
        self,
        learner: nn.Module,
        loss: TrainingLoss,
        batches: Batches,
        schedule: Schedule,
        *,
        epochs: int,
        callbacks: Sequence[Callback] = (),
    ) -> list[dict[str, Any]]:
        """Train a learner in place, with the threat model, generator, checkpoint and precision of this context.

        Args:
            learner: its parameters that require a gradient are trained.
            loss: the loss that is minimised.
            batches: training images.
            schedule: optimiser and learning rates.
            epochs: passes over the batches, >= 1.
            callbacks: those of the method, called before those of the context.

        Returns:
            One record an epoch, as `training.fit` returns them.
        """
        return fit(
            learner,
            loss,
            batches,
            schedule,
            epochs=epochs,
            threat=self.threat,
            rng=self.rng,
            callbacks=[*callbacks, *self.callbacks],
            checkpoint=self.checkpoint,
            precision=self.precision,
        )


class LearnerNetwork(nn.Module):
    """Abstract: a network that is trained with masks or auxiliary variables, which a subclass adds to its layers."""

    def __init__(self, network: nn.Module, target: SparsityTarget) -> None:
        super().__init__()
        self.network, self.target = network, target
        self.layers = prunable_layers(network)

    def forward(self, x: Images) -> Logits:
        """Return the logits of the network."""
        logits: Logits = self.network(x)
        return logits


class PruningResult(NamedTuple):
    """A sparse model without parametrizations, and its mask."""

    model: nn.Module
    mask: Mask
    history: list[dict[str, Any]]
    """One record for each epoch that the method trained; empty where it trained nothing."""


class PruningMethod(Component):
    """Chooses the weights that stay; returns a new model, the given one is left as found.

    A method returns the model and not only its mask, because some (Flying Bird, R-ADMM) train while they choose.
    """

    fine_tunes: ClassVar[bool] = True
    """Whether the remaining weights may be trained afterwards."""

    @abstractmethod
    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Prune a model to the target, exactly.

        Args:
            model: trained and dense, in eval mode; left as found.
            scores: one number >= 0 for each prunable weight, by layer; higher = keep. Some methods ignore them.
            target: sparsity, granularity, budget and its division among layers.
            context: data, loss and training settings.

        Returns:
            The sparse model, its mask and the training history; removed weights are 0 in the model.

        Raises:
            InputError: the target cannot be reached, or training images are missing.
        """


pruning_methods: Registry[PruningMethod] = Registry("pruning method", PruningMethod)
