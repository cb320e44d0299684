"""Evaluations side by side."""

from dataclasses import dataclass, field
from typing import Literal, final

from sparsemble.core.errors import InputError
from sparsemble.core.results.evaluation import EvaluationResult
from sparsemble.core.results.result_file import SCHEMA, ResultFile, check_fractions, check_intervals


@final
@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Two rows compared image by image, each in its own worst case."""

    a: str
    b: str
    """Names of the rows."""
    difference: float
    """Worst-case accuracy of a minus that of b."""
    interval: tuple[float, ...]
    """Of the difference (Tango 1998): low and high."""
    contains_zero: bool
    """Whether the interval contains 0: the difference may be chance."""
    only_a: int
    """Images that only a classifies correctly."""
    only_b: int
    p_value: float
    """McNemar's exact test, two-sided; not corrected for the number of pairs."""
    same_attacks: bool
    """Whether both rows faced the same attacks with the same settings."""

    def __post_init__(self) -> None:
        check_intervals(-1, interval=self.interval)


@final
@dataclass(frozen=True, kw_only=True)
class QuotedResult:
    """What others measured, as they publish it: accuracies without the outcomes of single images."""

    name: str
    source: str
    """The file that it was read from."""
    kind: Literal["RobustBench", "AutoAttack log"]
    data: str | None = None
    """Name of the data set; none: the file does not give it."""
    norm: Literal["linf", "l2", "l1"] | None = None
    eps_text: str | None = None
    """As the file gives it; of a log its largest perturbation."""
    images: int | None = None
    """Number of test images, where the file tells it."""
    architecture: str | None = None
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    """The lowest of the attacks on the whole classifier that the file names."""
    corrupted_accuracy: float | None = None
    """Mean over the common corruptions and severities."""
    attacks: dict[str, float] = field(default_factory=dict)
    """Accuracy by attack; in a log what is left after each part."""
    unreliable: bool = False
    """Whether the source marks its number so."""

    def __post_init__(self) -> None:
        named = ("clean_accuracy", "robust_accuracy", "corrupted_accuracy")
        known = {name: value for name in named if (value := getattr(self, name)) is not None}
        check_fractions(**known, **{f"accuracy under {name}": value for name, value in self.attacks.items()})
        if self.robust_accuracy is None and self.corrupted_accuracy is None:
            raise InputError(f"{self.source} has neither a robust accuracy nor one under corruptions")


@final
@dataclass(frozen=True, kw_only=True)
class ComparisonResult(ResultFile):
    """Evaluations of different classifiers on the same images under the same threat model: `comparison.json`."""

    schema: int = SCHEMA
    level: float
    """Confidence level of the intervals of the differences."""
    rows: tuple[EvaluationResult, ...]
    """One or more, with names of their own."""
    pairs: tuple[PairedTest, ...]
    """One for each two rows, in the order of the rows."""
    shared_attacks: tuple[str, ...]
    """Labels of the attacks that all rows faced with the same settings."""
    partial_attacks: dict[str, tuple[str, ...]]
    """Attacks that only some rows faced: label to names of rows."""
    differing_attacks: tuple[str, ...]
    """Attacks that all rows faced, with different settings."""
    alarms: tuple[str, ...]
    """Sentences: what forbids to rely on a row."""
    notes: tuple[str, ...]
    """Sentences: what differs between the rows besides the classifier."""
    quoted: tuple[QuotedResult, ...] = ()
    """Numbers of others beside the rows; none of them is tested against a row."""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        everything = [*names, *(quoted.name for quoted in self.quoted)]
        if not names or len(everything) < 2 or len(set(everything)) < len(everything):
            raise InputError(
                f"rows must be two or more, one of them measured here, with names of their own, got "
                f"{', '.join(everything) or 'none'}"
            )
        if len(self.pairs) != len(names) * (len(names) - 1) // 2:
            raise InputError(f"pairs must hold every two rows once, got {len(self.pairs)} pairs of {len(names)} rows")
