"""What an evaluation produces: numbers, their intervals, what they cost, and how reliable they are."""

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.core.results.corruptions import CorruptionRecord
from sparsemble.core.results.evaluation_parts import (
    CHECKS,
    STATUSES,
    AttackResult,
    CheckResult,
    Cost,
    DataRecord,
    MembersRun,
    MembersTable,
    ModelRecord,
    Passes,
    SecurityCurve,
    Status,
    ThreatRecord,
    WorstCase,
)
from sparsemble.core.results.result_file import SCHEMA, ResultFile, check_accuracy, check_lengths, check_not_negative


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationResult(ResultFile):
    """A classifier under attack: accuracies with their intervals, cost, and the checks of the evaluation."""

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
    corruptions: CorruptionRecord | None = None
    """Accuracy under common corruptions, where they were asked for."""
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
        by_label = {attack.label: attack for attack in self.attacks}
        if label not in by_label:
            raise InputError(f'"{label}" is no attack of this evaluation; it has {", ".join(by_label)}')
        return by_label[label]

    @property
    def strongest(self) -> AttackResult:
        """Return the attack that leaves the fewest images correct."""
        return min(self.attacks, key=lambda attack: sum(attack.correct))

    def checks_with(self, status: Status) -> tuple[CheckResult, ...]:
        """Return the checks of one status."""
        return tuple(check for check in self.checks if check.status == status)

    def to_robustbench(self) -> dict[str, Any]:
        """Return the result as RobustBench keeps a model: its field names, accuracies in percent as text.

        `threat` is ours; RobustBench has the norm in the name of the folder.

        `autoattack_acc` is filled where the standard AutoAttack ran in exact mode; `unreliable` is true where a check
        of this evaluation failed. What only the authors of a model know is null.
        """
        standard = [
            attack.robust_accuracy
            for attack in self.attacks
            if attack.mode == "exact" and attack.settings.get("variant") == "standard"
        ]
        extra = self.model.extra_data
        return {
            "link": None,
            "authors": None,
            "venue": None,
            "additional_data": None if extra is None else extra != "none",
            "number_forward_passes": f"{self.members_run.clean:g}",
            "dataset": self.data.name,
            "architecture": self.model.architecture,
            "threat": self.threat.norm.capitalize(),
            "eps": self.threat.eps_text,
            "clean_acc": f"{100 * self.clean_accuracy:.2f}",
            "reported": None,
            "autoattack_acc": f"{100 * standard[0]:.2f}" if standard else None,
            "corruptions_acc": f"{100 * self.corruptions.mean:.2f}" if self.corruptions else None,
            "unreliable": bool(self.checks_with("failed")),
            "external": None,
        }

    def __str__(self) -> str:
        """Return the result as a table in plain text."""
        rows = [("clean", self.clean_accuracy, self.clean_interval)]
        rows += [(attack.label, attack.robust_accuracy, attack.interval) for attack in self.attacks]
        rows += [("worst case", self.robust_accuracy, self.interval)]
        width = max(len(label) for label, _, _ in rows)
        lines = [
            f"{self.name}: {self.data.images} images of {self.data.name}, {self.threat.norm} {self.threat.eps_text}"
        ]
        lines += [f"  {'attack':{width}}  accuracy %  95 % interval"]
        lines += [
            f"  {label:{width}}  {100 * value:10.1f}  {100 * low:.1f} to {100 * high:.1f}"
            for label, value, (low, high) in rows
        ]
        if self.corruptions:
            lines += [f"  mean accuracy over common corruptions: {100 * self.corruptions.mean:.1f} %"]
        counts = [f"{len(self.checks_with(status))} {status}" for status in STATUSES]
        return "\n".join([*lines, f"  checks: {', '.join(counts)}" if self.checks else "  checks: none"])

    def __post_init__(self) -> None:
        of_attacks = {f"attacks.{attack.label}.correct": attack.correct for attack in self.attacks}
        worst = {"worst_case.correct": self.worst_case.correct}
        check_lengths(self.data.images, "data.images", clean_correct=self.clean_correct, **of_attacks, **worst)
        check_accuracy("clean_accuracy", self.clean_accuracy, self.clean_correct, self.clean_interval)
        check_not_negative(seconds=self.seconds)
        self._check_attacks()
        numbers = sorted(check.number for check in self.checks)
        if numbers and numbers != list(range(1, CHECKS + 1)):
            missing = ", ".join(str(i) for i in range(1, CHECKS + 1) if i not in numbers) or "none"
            raise InputError(f"checks must be the checks 1 to {CHECKS}, each once; missing: {missing}")
        if self.corruptions and self.corruptions.images != self.data.images:
            raise InputError(f"corruptions.images = {self.corruptions.images} must be data.images = {self.data.images}")
        if self.members:
            check_lengths(self.model.members, "model.members", **{"members.names": self.members.names})

    def _check_attacks(self) -> None:
        """Check that the worst case is the image-by-image union, and the passes the sum over the attacks."""
        if not self.attacks:
            raise InputError("attacks is empty; a worst case needs at least one attack")
        labels = [attack.label for attack in self.attacks]
        if len(set(labels)) < len(labels):
            raise InputError(f"attacks must have labels of their own, got {', '.join(labels)}")
        correct = np.min([self.clean_correct, *(attack.correct for attack in self.attacks)], axis=0)
        wrong = np.flatnonzero(correct != np.asarray(self.worst_case.correct))
        if wrong.size:
            i = int(wrong[0])
            raise InputError(
                f"worst_case.correct[{i}] = {self.worst_case.correct[i]} must be {correct[i]}: an image is correct in "
                "the worst case if it is correct when clean and under every attack"
            )
        for kind in ("forward", "backward"):
            total = sum(getattr(attack.passes, kind) for attack in self.attacks)
            if getattr(self.passes, kind) != total:
                raise InputError(
                    f"passes.{kind} = {getattr(self.passes, kind)} must be {total}, the sum over the attacks"
                )


@final
@dataclass(frozen=True, kw_only=True)
class Examples:
    """A few images with the adversarial images made from them; not part of a result file."""

    clean: np.ndarray
    """Images (N, C, H, W) in [0, 1]."""
    adversarial: np.ndarray
    label: np.ndarray
    """True classes (N)."""
    clean_prediction: np.ndarray
    adversarial_prediction: np.ndarray
