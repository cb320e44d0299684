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
    """Whether the engine computes every weight of the dense network, zeros, too."""
    arithmetic: str = "float32"
    """float32, bfloat16, float16 or int8: of most of its layers."""
    batch: int
    threads: int
    median_ms: float
    low_quartile_ms: float
    high_quartile_ms: float
    images_per_second: float
    ratio: float
    """Median time of the fastest dense engine in float32 over that of this row."""
    ratio_any_precision: float | None = None
    """The same for the fastest dense engine in any arithmetic."""
    members_run: float | None = None
    agreement: float | None = None
    """Fraction of images with the label of the same network in float32 (of an ensemble: with the same rule); it says
    little of random weights, which give most images one label."""
    accuracy: float | None = None
    """On up to 256 test images, of what the row runs: the ensemble, or its first member; none: random weights."""

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
    """Of our engine over the fastest dense one in float32, for the first batch size and number of threads; an ensemble
    stops early on clean images."""
    ratio_any_precision: float | None = None
    """The same over the fastest dense engine in any arithmetic."""
    headline: str = ""
    """Engine of the row that has these ratios."""
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
    skipped: dict[str, str] = field(default_factory=dict)
    """Engine or network that was not timed, to the reason."""
    first_use: tuple[FirstUse, ...] = ()
