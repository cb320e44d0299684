"""Many recipes side by side."""

from dataclasses import dataclass
from typing import Any, Literal, final

from sparsemble.core.errors import InputError
from sparsemble.core.results.evaluation_parts import MembersRun
from sparsemble.core.results.result_file import (
    SCHEMA,
    ResultFile,
    check_fractions,
    check_intervals,
    check_lengths,
    check_not_negative,
)


@final
@dataclass(frozen=True, kw_only=True)
class StudyNumbers:
    """What was measured of one model, or the means over several seeds."""

    clean_accuracy: float
    worst_case: float
    attacks: dict[str, float]
    """Label to robust accuracy."""
    sparsity: float
    nonzeros: float
    macs_nonzero: float
    members_run: MembersRun
    training_passes: float
    training_seconds: float
    speedup: float | None = None
    """Multiply-accumulates of the dense parent over those that a clean image takes; none: not measured."""

    def __post_init__(self) -> None:
        check_fractions(
            clean_accuracy=self.clean_accuracy, worst_case=self.worst_case, sparsity=self.sparsity, **self.attacks
        )
        check_not_negative(
            nonzeros=self.nonzeros,
            macs_nonzero=self.macs_nonzero,
            training_passes=self.training_passes,
            training_seconds=self.training_seconds,
            speedup=self.speedup or 0.0,
        )


@final
@dataclass(frozen=True, kw_only=True)
class StudyCell:
    """One model with one seed."""

    values: dict[str, str]
    """Axis to value."""
    seed: int
    settings: tuple[str, ...]
    """What the cell changes in the recipe."""
    row: str
    failed: str | None = None
    """Why there is no such model; none: there is."""
    numbers: StudyNumbers | None = None
    macs_dense: int | None = None
    correct: tuple[int, ...] = ()
    """In the worst case; one an image."""
    artifact: str | None = None
    """Folder of the model, or of the run's report, in the study's folder."""

    def __post_init__(self) -> None:
        if (self.failed is None) != (self.numbers is not None):
            raise InputError(f"a cell has either numbers or failed, the reason why there are none; seed {self.seed}")
        if self.numbers and abs(self.numbers.worst_case * len(self.correct) - sum(self.correct)) > 1e-6:
            raise InputError(
                f"worst_case = {self.numbers.worst_case} must be the fraction of correct images, "
                f"{sum(self.correct)} of {len(self.correct)}"
            )


@final
@dataclass(frozen=True, kw_only=True)
class StudyLine:
    """The seeds of one combination of values and row, together."""

    values: dict[str, str]
    row: str
    seeds: int
    """How many there are numbers of."""
    failed: tuple[str, ...] = ()
    """Seeds without numbers, and why."""
    numbers: StudyNumbers | None = None
    """Means over the seeds."""
    interval: tuple[float, ...] = ()
    """95 % interval of the mean worst-case accuracy: low and high."""
    each: tuple[float, ...] = ()
    """Worst-case accuracy, seed by seed."""

    def __post_init__(self) -> None:
        check_lengths(self.seeds, "seeds", each=self.each)
        if (self.numbers is not None) != (self.seeds > 0):
            raise InputError(f"a line of {self.seeds} seeds must have numbers exactly if there are seeds")
        if self.numbers:
            check_intervals(0, interval=self.interval)


@final
@dataclass(frozen=True, kw_only=True)
class StudyResult(ResultFile):
    """Every combination of values and seeds of a study: `study.json`."""

    schema: int = SCHEMA
    title: str
    kind: Literal["pruned", "run", "mixed"]
    """pruned: a cell is a dense parent or one pruned model; run: the whole method; mixed: cells of both kinds."""
    recipe: str
    settings: tuple[str, ...]
    """Changes for all cells."""
    axes: dict[str, tuple[str, ...]]
    """Axis to its values."""
    seeds: tuple[int, ...]
    command: str
    machine: dict[str, Any]
    source: str | None = None
    """Source revision of the last call."""
    stage_sources: tuple[str, ...]
    """Source revisions that the stages were made by."""
    wall_seconds: float
    """Of the last call."""
    stage_seconds: float
    """Of all stages."""
    stages_run: int
    """By the last call."""
    cells: tuple[StudyCell, ...]
    table: tuple[StudyLine, ...]
