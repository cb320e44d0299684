"""The parts of an evaluation's result: what was evaluated, what each attack did, what it costs, the checks."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, final

from sparsemble.core.errors import InputError
from sparsemble.core.results.result_file import (
    check_accuracy,
    check_fractions,
    check_lengths,
    check_not_negative,
)

Status = Literal["failed", "skipped", "passed"]
STATUSES: tuple[Status, ...] = ("failed", "skipped", "passed")
"""What matters most first."""
CHECKS = 50
"""Length of the reference list of checks."""


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
    notes: tuple[str, ...] = ()
    """How images or outputs were converted, where the network is no plain classifier."""

    def __post_init__(self) -> None:
        check_fractions(sparsity=self.sparsity)
        check_not_negative(parameters=self.parameters, nonzeros=self.nonzeros)
        if self.members < 1:
            raise InputError(f"members = {self.members} must be 1 or more")


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

    def __post_init__(self) -> None:
        if self.images < 1:
            raise InputError(f"images = {self.images} must be 1 or more")
        check_lengths(self.images, "images", indices=self.indices)
        if len(set(self.indices)) < self.images:
            raise InputError("indices names an image twice")


@final
@dataclass(frozen=True, kw_only=True)
class ThreatRecord:
    """What the adversary may do and knows."""

    norm: Literal["linf", "l2", "l1"]
    eps: float
    eps_text: str
    """As people write it: 8/255."""
    knowledge: str = "white-box"
    targeted: bool = False

    def __post_init__(self) -> None:
        check_not_negative(eps=self.eps)
        try:
            eps = float(Fraction(self.eps_text))
        except (ValueError, ZeroDivisionError):
            raise InputError(f"eps_text = {self.eps_text!r} must be a number, as in 8/255") from None
        if abs(eps - self.eps) > 1e-5 * max(eps, self.eps):
            raise InputError(f"eps = {self.eps} must be the number that eps_text = {self.eps_text!r} stands for")


@final
@dataclass(frozen=True, kw_only=True)
class Passes:
    """Images sent through models."""

    forward: int
    backward: int

    def __post_init__(self) -> None:
        check_not_negative(forward=self.forward, backward=self.backward)


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
    minimum_norm: str | None = None
    """Norm of these distances, where it is not the threat's."""

    def __post_init__(self) -> None:
        check_accuracy("robust_accuracy", self.robust_accuracy, self.correct, self.interval)
        check_not_negative(seconds=self.seconds, distances=min(self.distances, default=0.0))
        if self.minimum_distances is None and self.median_distance is not None:
            raise InputError("median_distance is of minimum_distances, which are missing")
        check_lengths(
            len(self.correct),
            "the number of images in correct",
            distances=self.distances,
            members_run=self.members_run,
            minimum_distances=self.correct if self.minimum_distances is None else self.minimum_distances,
            **{f"passes_by_image.{kind}": counts for kind, counts in (self.passes_by_image or {}).items()},
        )


@final
@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """The union over the clean image and all attacks, image by image."""

    accuracy: float
    interval: tuple[float, ...]
    correct: tuple[int, ...]

    def __post_init__(self) -> None:
        check_accuracy("accuracy", self.accuracy, self.correct, self.interval)


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

    def __post_init__(self) -> None:
        check_not_negative(clean=self.clean, attacked=self.attacked, slowdown=self.slowdown)


@final
@dataclass(frozen=True, kw_only=True)
class SecurityCurve:
    """Accuracy against eps."""

    attack: str
    images: int
    eps: tuple[float, ...]
    accuracy: tuple[float, ...]

    def __post_init__(self) -> None:
        check_lengths(len(self.eps), "the number of radii in eps", accuracy=self.accuracy)
        check_fractions(**{f"accuracy[{i}]": accuracy for i, accuracy in enumerate(self.accuracy)})
        if not self.eps or list(self.eps) != sorted(set(self.eps)):
            raise InputError(f"eps = {list(self.eps)} must hold growing radii")


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

    def __post_init__(self) -> None:
        rows = {f"transfer[{i}]": row for i, row in enumerate(self.transfer)}
        lists = {"clean": self.clean, "robust": self.robust, "transfer": self.transfer, **rows}
        check_lengths(len(self.names), "the number of names", **lists)


@final
@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one call."""

    median_ms: float
    spread_ms: float
    """Distance of the quartiles."""

    def __post_init__(self) -> None:
        check_not_negative(median_ms=self.median_ms, spread_ms=self.spread_ms)


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

    def __post_init__(self) -> None:
        check_not_negative(
            bytes=self.bytes,
            peak_memory=self.peak_memory,
            macs_dense=self.macs_dense,
            macs_nonzero=self.macs_nonzero,
            training_passes=self.training_passes,
            training_seconds=self.training_seconds,
        )
        for engine, times in self.latency.items():
            if set(times) != {"batch_1", "batch_64"}:
                raise InputError(
                    f"latency.{engine} must hold batch_1 and batch_64, got {', '.join(times) or 'nothing'}"
                )
