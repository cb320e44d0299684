"""Evaluations side by side."""

from dataclasses import dataclass
from typing import final

from sparsemble.core.errors import InputError
from sparsemble.core.results.evaluation import EvaluationResult
from sparsemble.core.results.result_file import SCHEMA, ResultFile, check_intervals


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
class ComparisonResult(ResultFile):
    """Evaluations of different classifiers on the same images under the same threat model: `comparison.json`."""

    schema: int = SCHEMA
    level: float
    """Confidence level of the intervals of the differences."""
    rows: tuple[EvaluationResult, ...]
    """Two or more, with names of their own."""
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

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(names) < 2 or len(set(names)) < len(names):
            raise InputError(f"rows must be two or more with names of their own, got {', '.join(names) or 'none'}")
        if len(self.pairs) != len(names) * (len(names) - 1) // 2:
            raise InputError(f"pairs must hold every two rows once, got {len(self.pairs)} pairs of {len(names)} rows")
