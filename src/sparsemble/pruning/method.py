"""Ways from a dense model and a score to a sparse model and its mask."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Generator, nn

from sparsemble.core.errors import InputError
from sparsemble.core.registry import Component, Registry
from sparsemble.core.threat import ThreatModel
from sparsemble.pruning.mask import Mask
from sparsemble.pruning.score import Scores
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.precision import Precision


@dataclass(frozen=True, kw_only=True)
class PruningContext:
    """What a method that learns while it prunes needs."""

    batches: Batches | None
    """Training images; none where there are none, which only methods that learn nothing can do with."""
    loss: TrainingLoss
    """The robust loss."""
    threat: ThreatModel
    rng: Generator
    held_out: Callable[[nn.Module], dict[str, float]] | None = None
    """Measures a model on held-out images: `held_out_clean` and `held_out_robust`, in [0, 1]."""
    callbacks: Sequence[Callback] = ()
    """What else happens while the method trains."""
    checkpoint: Checkpoint | None = None
    """Where to keep the state of a long search."""
    precision: Precision = Precision()
    """Number format and layout of what the method trains."""

    def images(self, method: str) -> Batches:
        """Return the training images.

        Raises:
            InputError: there are none.
        """
        if self.batches is None:
            raise InputError(f'method "{method}" learns while it prunes and needs training images; give it some')
        return self.batches


class PruningResult(NamedTuple):
    """A plain sparse model and the mask that its weights obey."""

    model: nn.Module
    mask: Mask
    history: list[dict[str, Any]]
    """One record an epoch of what the method trained; empty where it trained nothing."""


class PruningMethod(Component):
    """Chooses the weights that stay; returns a new model, the given one is left as found.

    A method returns the model and not only its mask, because some (Flying Bird, R-ADMM) train while they choose.
    """

    fine_tunes: ClassVar[bool] = True
    """Whether the weights that are left may be trained afterwards."""

    @abstractmethod
    def __call__(
        self, model: nn.Module, scores: Scores, target: SparsityTarget, context: PruningContext
    ) -> PruningResult:
        """Prune to the target, exactly; a pruned weight is 0 and stays so unless the method says otherwise."""


pruning_methods: Registry[PruningMethod] = Registry("pruning method", PruningMethod)
