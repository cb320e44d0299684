"""Ways from a dense model and a score to a sparse model and its mask."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Generator, nn

from sparsemble.core.registry import Plug, Registry
from sparsemble.core.threat import ThreatModel
from sparsemble.pruning.granularity import Granularity
from sparsemble.pruning.mask import Mask
from sparsemble.pruning.score import Scores
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.computing import Computing
from sparsemble.training.objective import Objective


@dataclass(frozen=True, kw_only=True)
class PruningContext:
    """What a method that learns while it prunes needs."""

    batches: Batches
    """Training images."""
    objective: Objective
    """The robust loss."""
    threat: ThreatModel
    rng: Generator
    callbacks: Sequence[Callback] = ()
    """What else happens while the method trains."""
    checkpoint: Checkpoint | None = None
    """Where to keep the state of a long search."""
    computing: Computing = Computing()
    """Number format and layout of what the method trains."""


class Pruned(NamedTuple):
    """A plain sparse model and the mask that its weights obey."""

    model: nn.Module
    mask: Mask
    history: list[dict[str, Any]]
    """One record an epoch of what the method trained; empty where it trained nothing."""


class PruningMethod(Plug):
    """Chooses the weights that stay; returns a new model, the given one is left as found.

    A method returns the model and not only its mask, because some (Flying Bird, R-ADMM) train while they choose.
    """

    @abstractmethod
    def __call__(
        self, model: nn.Module, scores: Scores, sparsity: float, granularity: Granularity, context: PruningContext
    ) -> Pruned:
        """Prune to `sparsity`, in [0, 1), exactly: round((1 - sparsity) * n) of the n prunable weights stay."""


def kept_weights(total: int, sparsity: float) -> int:
    """Return how many of `total` weights stay at this sparsity."""
    return round((1 - sparsity) * total)


pruning_methods: Registry[PruningMethod] = Registry("pruning method", PruningMethod)
