"""What exporting and timing an ensemble produce."""

from dataclasses import dataclass, field
from typing import Any, final

from sparsemble.core.results.result_file import SCHEMA, ResultFile, check_intervals, check_not_negative
from sparsemble.core.results.run import HeldOutAccuracy


@final
@dataclass(frozen=True, kw_only=True)
class FormatAgreement:
    """How a written format differs from the ensemble with rounded weights, on held-out images."""

    images: int
    logits: float
    """Largest difference of a member's logit, relative to the largest logit where that is above 1."""
    labels: int
    """Images with another label."""
    decisions: int
    """Images with another number of members run, or another prefix that answers."""
    near: int
    """Images whose label or decision depends on less than the tolerance; only these may differ."""
    static_ensemble: float | None = None
    """ONNX: largest difference of all members in one graph."""
    batch_of_one: float | None = None
    """ONNX: the same, one image at a time."""


@final
@dataclass(frozen=True, kw_only=True)
class ArithmeticAccuracy:
    """Of an ensemble with its stopping rule in one arithmetic, attacked itself."""

    clean: float
    robust: float
    """Correct when clean and under every attack."""
    attacks: dict[str, float]
    """Accuracy under each attack."""
    members_run: float
    """Mean on clean images."""


@final
@dataclass(frozen=True, kw_only=True)
class AccuracyChange:
    """An accuracy in 8 bits minus that in float32, on the same images."""

    difference: float
    interval: tuple[float, float]
    """Paired, 95 % (Tango 1998): low and high."""

    def __post_init__(self) -> None:
        check_intervals(-1, interval=self.interval)


@final
@dataclass(frozen=True, kw_only=True)
class ArithmeticChange:
    """What 8-bit arithmetic changes, on held-out images."""

    images: int
    float32: ArithmeticAccuracy
    int8: ArithmeticAccuracy
    clean: AccuracyChange
    robust: AccuracyChange


@final
@dataclass(frozen=True, kw_only=True)
class ExportResult(ResultFile):
    """What an export wrote: `export/export.json`."""

    schema: int = SCHEMA
    values: str
    """float16, float32 or int8."""
    arithmetic: str = "float32"
    """float32 or int8."""
    bytes: int
    """Of the packed file."""
    share_of_dense_float32: float
    """Bytes of the packed file over those of the dense parent in float32."""
    nonzeros: int
    sparsity: float
    held_out_images: int
    unrounded: HeldOutAccuracy
    rounded: HeldOutAccuracy
    """With the weights as stored, in the arithmetic of the file."""
    change: ArithmeticChange | None = None
    """By 8-bit arithmetic; none: it computes in float32."""
    formats: dict[str, FormatAgreement]
    not_written: dict[str, str] = field(default_factory=dict)
    """Format to the reason."""


@final
@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One engine with one batch size and number of threads."""

    engine: str
    dense: bool
    """Whether the engine computes zeros, too."""
    batch: int
    threads: int
    median_ms: float
    low_quartile_ms: float
    high_quartile_ms: float
    images_per_second: float
    ratio: float
    """Median time of the fastest dense engine over that of this row."""
    members_run: float | None = None

    def __post_init__(self) -> None:
        check_not_negative(median_ms=self.median_ms, images_per_second=self.images_per_second, ratio=self.ratio)


@final
@dataclass(frozen=True, kw_only=True)
class FirstUse:
    """Seconds until the first answer on one thread."""

    batch: int
    empty_cache_s: float
    filled_cache_s: float


@final
@dataclass(frozen=True, kw_only=True)
class BenchResult(ResultFile):
    """`sparsemble bench`: our engine and dense ones, timed in interleaved rounds."""

    schema: int = SCHEMA
    ratio: float
    """Of our engine, for the first batch size and number of threads; of an ensemble while it stops early."""
    command: str
    settings: dict[str, Any]
    """What was asked for, every default written out."""
    network: dict[str, float]
    """Facts of the network: weights, nonzeros, sparsity, ..."""
    machine: dict[str, Any]
    versions: dict[str, str]
    source: str | None = None
    """Source revision."""
    rows: tuple[BenchRow, ...]
    first_use: tuple[FirstUse, ...] = ()
