"""What an evaluation, a comparison of rows and a run report: frozen dataclasses, read back by the strict reader."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, final

from sparsemble.core.artifacts import read_json, write_bytes
from sparsemble.core.config import from_dict
from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict

R = TypeVar("R")
SCHEMA = 3
"""Version of the result files; raised when a field changes its meaning or its name."""

Status = Literal["failed", "skipped", "passed"]
STATUSES: tuple[Status, ...] = ("failed", "skipped", "passed")
"""What matters most first."""


@final
@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One check of an evaluation."""

    number: int
    """In the reference list of fifty."""
    name: str
    """What the check establishes when it passes."""
    status: Status
    """passed: by evidence from this evaluation; skipped: there was none, and `detail` says why."""
    detail: str
    """What was measured, or the reason."""


@final
@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The classifier that was evaluated."""

    kind: str
    """run, artifact, ensemble (a packed file), weights or code."""
    path: str
    sha256: str
    """Of the weights."""
    architecture: str
    """Class of the network."""
    parameters: int
    nonzeros: int
    """Prunable weights that are not 0, over all members."""
    sparsity: float
    """Fraction of the prunable weights that are zero; of an ensemble counted against one dense parent where that is
    known, else against its own weights."""
    claimed_sparsity: float | None = None
    members: int = 1
    combiner: str | None = None
    rule: str | None = None
    """Name of the deployed stopping rule; none: all members always run."""
    selected_on: Literal["held-out", "test"] | None = None
    """Images on which the checkpoint was chosen; none: not known."""
    extra_data: str | None = None
    """Training data beyond the data set's own; "none" where the training is known to have used none; none: unknown."""


@final
@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The images that were attacked."""

    name: str
    sha256: str
    split: Literal["test", "held-out"] = "test"
    images: int
    subset_seed: int | None = None
    """Seed with which a stratified part was drawn; none: the whole split."""
    classes: int
    indices: tuple[int, ...]
    """Positions in the split, one an image."""


@final
@dataclass(frozen=True, kw_only=True)
class ThreatRecord:
    """What the adversary may do and knows."""

    norm: Literal["linf", "l2"]
    eps: float
    eps_text: str
    """As people write it: 8/255."""
    knowledge: str = "white-box"
    targeted: bool = False


@final
@dataclass(frozen=True, kw_only=True)
class Passes:
    """Images sent through models."""

    forward: int
    backward: int


@final
@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """What one attack did, image by image."""

    label: str
    kind: Literal["attack", "ensemble attack"]
    settings: dict[str, Any]
    """The attack as a recipe would name it, every default written out."""
    mode: Literal["fast", "exact"] | None = None
    """Of AutoAttack."""
    robust_accuracy: float
    interval: tuple[float, ...]
    """Wilson, 95 %: low and high."""
    correct: tuple[int, ...]
    """1 where the deployed prediction is the true class on the adversarial image, else 0; one an image."""
    distances: tuple[float, ...]
    """Of the adversarial image from the clean one, in the threat's norm."""
    members_run: tuple[int, ...]
    passes: Passes
    passes_by_image: dict[str, list[float]] | None = None
    """forward and backward, one number an image."""
    seconds: float
    parts: dict[str, int] | None = None
    """AutoAttack: images that each part broke."""
    minimum_distances: tuple[float | None, ...] | None = None
    """Minimum-norm attacks: distance of the nearest adversarial image found; none where there is none."""
    median_distance: float | None = None


@final
@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """The union over the clean image and all attacks, image by image."""

    accuracy: float
    interval: tuple[float, ...]
    correct: tuple[int, ...]


@final
@dataclass(frozen=True, kw_only=True)
class MembersRun:
    """Mean number of members that ran for an image."""

    clean: float
    attacked: float
    """Under the attack that costs the most members, of those that were run."""
    slowdown: float | None = None
    """Under attacks that aim at the cost."""
    clean_counts: tuple[int, ...] = ()
    """Images answered after 1, 2, .. members."""
    attacked_counts: tuple[int, ...] = ()


@final
@dataclass(frozen=True, kw_only=True)
class SecurityCurve:
    """Accuracy against eps."""

    attack: str
    images: int
    eps: tuple[float, ...]
    accuracy: tuple[float, ...]


@final
@dataclass(frozen=True, kw_only=True)
class MembersTable:
    """Each member by itself."""

    names: tuple[str, ...]
    images: int
    clean: tuple[float, ...]
    robust: tuple[float, ...]
    transfer: tuple[tuple[float, ...], ...]
    """Accuracy of column j on images crafted against row i."""


@final
@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one call."""

    median_ms: float
    spread_ms: float
    """Distance of the quartiles."""


@final
@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the deployed classifier takes, on clean images."""

    bytes: int
    """Of a packed file: non-zero values and bitmaps, all members."""
    peak_memory: int | None = None
    """Bytes of tensors alive at one time for 64 images, weights included."""
    macs_dense: int
    """Multiply-accumulates of all members for one image, zeros included."""
    macs_nonzero: float
    """Of non-zero weights, expected over clean images when members run one after the other."""
    latency: dict[str, dict[str, Timing]] = field(default_factory=dict)
    """By engine (torch, engine), then by batch_1 and batch_64."""
    training_passes: int | None = None
    """Images forward and backward in everything the model was made from; none: not known."""
    training_seconds: float | None = None


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """A classifier under attack: numbers, their intervals, what they cost, and how far to believe them."""

    schema: int = SCHEMA
    name: str
    command: str
    """What reproduces it."""
    model: ModelRecord
    data: DataRecord
    threat: ThreatRecord
    seed: int
    device: str
    search_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the attacks' passes; float32 decides."""
    clean_accuracy: float
    clean_interval: tuple[float, ...]
    clean_correct: tuple[int, ...]
    attacks: tuple[AttackResult, ...]
    worst_case: WorstCase
    members_run: MembersRun
    cost: Cost
    security_curve: SecurityCurve | None = None
    members: MembersTable | None = None
    checks: tuple[CheckResult, ...] = ()
    seconds: float
    """Of the attacks."""
    passes: Passes
    quoted: tuple[dict[str, Any], ...] = ()
    """Numbers of others, each with its source."""
    machine: dict[str, Any]
    versions: dict[str, str]
    source: str | None = None
    """Source revision."""

    @property
    def robust_accuracy(self) -> float:
        """Fraction of images classified correctly when clean and under every attack: the headline."""
        return self.worst_case.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the robust accuracy (Wilson)."""
        low, high = self.worst_case.interval
        return low, high

    def attack(self, label: str) -> AttackResult:
        """Return the result of one attack.

        Raises:
            InputError: no attack has this label.
        """
        for attack in self.attacks:
            if attack.label == label:
                return attack
        raise InputError(
            f'"{label}" is no attack of this evaluation; it has {", ".join(a.label for a in self.attacks)}'
        )

    def to_json(self) -> str:
        """Return the result as JSON text that `load` reads back."""
        return result_json(self)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a result file strictly.

        Raises:
            InputError: the file cannot be read, or a field is missing, unknown or of the wrong type.
        """
        return load_result(cls, path)


@final
@dataclass(frozen=True, kw_only=True)
class SelectionRecord:
    """Which sub-models were selected, and why."""

    ensemble: tuple[str, ...]
    robust_diversity: float
    threshold: float | None = None
    reason: str


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
class RunSummary:
    """All that a run found: `report/summary.json`."""

    schema: int = SCHEMA
    name: str
    command: str
    seed: int
    rows: tuple[EvaluationResult, ...]
    """One a model of the result table; their names are in `ROW_NAMES`."""
    selection: SelectionRecord
    stopping: StoppingRecord
    machine: dict[str, Any]
    recipe: dict[str, Any]
    versions: dict[str, str]
    source: str | None = None

    def row(self, name: str) -> EvaluationResult:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> str:
        """Return the summary as JSON text that `load` reads back."""
        return result_json(self)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a summary strictly.

        Raises:
            InputError: the file cannot be read, or a field is missing, unknown or of the wrong type.
        """
        return load_result(cls, path)


ROW_NAMES = {
    "dense": "Dense parent",
    "small_dense": "Small dense network (the ensemble's multiply-adds)",
    "harp": "One HARP model (same sparsity)",
    "best_member": "Best single sub-model",
    "ensemble_static": "Ensemble, all members",
    "ensemble_dynamic": "Ensemble, dynamic",
}
"""Rows of a run's result table and what people read."""


def result_json(result: Any) -> str:
    """Return a result dataclass as JSON text; lists of numbers stand on one line each."""
    return json.dumps(to_dict(result), indent=1, allow_nan=False) + "\n"


def write_result(result: Any, path: Path) -> None:
    """Write a result dataclass as JSON, atomically."""
    write_bytes(path, result_json(result).encode())


def load_result(cls: type[R], path: Path) -> R:
    """Read a result dataclass strictly; a fault is an `InputError` that names the file and the field."""
    table = read_json(path)
    if isinstance(table, dict) and table.get("schema", SCHEMA) != SCHEMA:
        raise InputError(f"{path} has schema {table['schema']!r}, this version reads {SCHEMA}; make the result anew")
    return from_dict(cls, table, path.name)
