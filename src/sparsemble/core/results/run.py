"""What a run produces: its rows, what was selected, how it was calibrated, and the details behind them."""

from dataclasses import dataclass
from typing import Any, final

from sparsemble.core.errors import InputError
from sparsemble.core.results.comparison import PairedTest
from sparsemble.core.results.evaluation import EvaluationResult
from sparsemble.core.results.result_file import SCHEMA, ResultFile, check_lengths

ROW_NAMES = {
    "dense": "Dense parent",
    "small_dense": "Small dense network (the ensemble's multiply-adds)",
    "harp": "One HARP model (same sparsity)",
    "best_member": "Best single sub-model",
    "ensemble_static": "Ensemble, all members",
    "ensemble_dynamic": "Ensemble, dynamic",
}
"""Rows of a run's result table and what people read."""


@final
@dataclass(frozen=True, kw_only=True)
class ChanceLevel:
    """What predictions without skill reach on a set of images: those of one class for every image."""

    images: int
    largest_class: int
    """Images of the largest class: that many are correct if it is predicted for every image."""
    least: int
    """Fewest correct images that are more than chance (one-sided exact binomial test at 1 %); more than `images`: so
    few cannot tell."""

    def is_beaten(self, accuracy: float) -> bool:
        """Return whether an accuracy on these images is more than chance."""
        return round(accuracy * self.images) >= self.least

    def __str__(self) -> str:
        alone = f"predicting one class for every image gives {100 * self.largest_class / self.images:.1f} %"
        if self.least > self.images:
            return f"{alone}, and so few images cannot tell anything from chance"
        return f"{alone}, and less than {100 * self.least / self.images:.1f} % may be chance"


@final
@dataclass(frozen=True, kw_only=True)
class SelectionRecord:
    """Which sub-models were selected, and why."""

    ensemble: tuple[str, ...]
    """Names of the members, at least one."""
    robust_diversity: float
    threshold: float | None = None
    reason: str
    at_chance: tuple[str, ...] = ()
    """Names of sub-models that are no better than chance on held-out images."""

    def __post_init__(self) -> None:
        if not self.ensemble:
            raise InputError("ensemble is empty; it must name the members")


@final
@dataclass(frozen=True, kw_only=True)
class HeldOutOutcome:
    """What a stopping rule does on the calibration images."""

    clean: float
    worst_case: float
    members_run: float
    attacked_members_run: float


@final
@dataclass(frozen=True, kw_only=True)
class SensitivityRecord:
    """The rule with one constant changed."""

    setting: str
    factor: float
    outcome: HeldOutOutcome


@final
@dataclass(frozen=True, kw_only=True)
class StoppingRecord:
    """The calibrated stopping rule."""

    rule: str
    settings: dict[str, Any]
    order: tuple[str, ...]
    """Members in running order."""
    images: int
    """Calibration images."""
    allowed: int
    """Images the rule may lose against the full ensemble."""
    tried: int
    """Settings compared."""
    outcome: HeldOutOutcome
    full_ensemble: HeldOutOutcome
    sensitivity: tuple[SensitivityRecord, ...]


@final
@dataclass(frozen=True, kw_only=True)
class RunSummary(ResultFile):
    """All that a run found: `report/summary.json`."""

    schema: int = SCHEMA
    name: str
    command: str
    seed: int
    rows: tuple[EvaluationResult, ...]
    """One a model of the result table; their names are in `ROW_NAMES`."""
    selection: SelectionRecord
    stopping: StoppingRecord
    against_parent: PairedTest | None = None
    """The ensemble with its stopping rule against the dense parent, each in its own worst case; none: not compared."""
    chance: ChanceLevel | None = None
    """Of the test images; none: not known."""
    machine: dict[str, Any]
    recipe: dict[str, Any]
    versions: dict[str, str]
    source: str | None = None

    def row(self, name: str) -> EvaluationResult:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if sorted(names) != sorted(ROW_NAMES):
            raise InputError(f"rows must be {', '.join(ROW_NAMES)}, each once; got {', '.join(names) or 'none'}")


@final
@dataclass(frozen=True, kw_only=True)
class LayerSparsity:
    """Fraction of the weights that are zero, layer by layer."""

    names: tuple[str, ...]
    weights: tuple[int, ...]
    """Weights of each layer, zeros included."""
    sparsity: dict[str, tuple[float, ...]]
    """By pruning score, the mean over its sub-models: one number a layer."""

    def __post_init__(self) -> None:
        check_lengths(len(self.names), "the number of layers", weights=self.weights, **self.sparsity)


@final
@dataclass(frozen=True, kw_only=True)
class MaskOverlap:
    """Jaccard overlap of the weights that two sub-models keep."""

    names: tuple[str, ...]
    jaccard: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows = {f"jaccard[{i}]": row for i, row in enumerate(self.jaccard)}
        check_lengths(len(self.names), "the number of names", jaccard=self.jaccard, **rows)


@final
@dataclass(frozen=True, kw_only=True)
class HeldOutAccuracy:
    """Accuracy on held-out images, clean and under the attack by which epochs are chosen."""

    clean: float
    robust: float


@final
@dataclass(frozen=True, kw_only=True)
class SubModelRecord:
    """How one sub-model of the pool was pruned."""

    name: str
    weights: int
    """Prunable weights, zeros included."""
    nonzeros: int
    dead_channels: int
    """Channels without influence on the output."""
    dead_weights: int
    """Weights that served dead channels only; removed as well."""
    macs_dense: int
    macs_nonzero: int
    before_finetuning: HeldOutAccuracy
    after_finetuning: HeldOutAccuracy


@final
@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch that was kept."""

    epoch: int
    """From 1."""
    loss: float
    """Mean over the epoch."""
    learning_rate: float
    """Of the last step."""
    held_out: HeldOutAccuracy | None = None
    """None: not measured after this epoch."""
    rolled_back: tuple[str, ...] = ()
    """What went wrong in tries of this epoch that were not kept."""
    stopped: str | None = None
    """Why training ended early, after this epoch."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """The epochs of one training."""

    name: str
    """A row of `ROW_NAMES`, or ensemble."""
    epochs: tuple[EpochRecord, ...]


@final
@dataclass(frozen=True, kw_only=True)
class RunDetails(ResultFile):
    """What a run's page shows beside the summary: `report/details.json`."""

    schema: int = SCHEMA
    classes: tuple[str, ...] = ()
    layers: LayerSparsity | None = None
    overlap: MaskOverlap | None = None
    pool: tuple[SubModelRecord, ...] = ()
    trainings: tuple[TrainingRecord, ...] = ()
