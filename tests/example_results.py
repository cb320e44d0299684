"""Full, valid results, made up: an evaluation, a run with its details, examples."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsemble.core.results import (
    ROW_NAMES,
    AttackResult,
    ChanceLevel,
    CheckResult,
    CorruptionAccuracy,
    CorruptionRecord,
    Cost,
    DataRecord,
    EpochRecord,
    EvaluationResult,
    Examples,
    HeldOutAccuracy,
    HeldOutOutcome,
    LayerSparsity,
    MaskOverlap,
    MembersRun,
    MembersTable,
    ModelRecord,
    Passes,
    RunDetails,
    RunSummary,
    SecurityCurve,
    SelectionRecord,
    SensitivityRecord,
    Status,
    StoppingRecord,
    SubModelRecord,
    ThreatRecord,
    Timing,
    TrainingRecord,
    WorstCase,
)
from sparsemble.core.results.corruptions import CORRUPTIONS
from sparsemble.evaluation.compare import paired_test
from sparsemble.evaluation.statistics import wilson

LABELS = ("autoattack-fast", "pgd50x2-whole", "pgd50x2-mean_logit", "sequential50x2", "hijack50", "slowdown50", "fmn")
NOT_PASSED: dict[int, Status] = {14: "failed", 20: "failed"} | dict.fromkeys((5, 25, 31, 45, 49), "skipped")
EPS = (0.0, 4 / 255, 8 / 255, 12 / 255, 16 / 255, 32 / 255, 64 / 255, 0.5)
TIMES = {"batch_1": Timing(median_ms=4.1, spread_ms=0.2), "batch_64": Timing(median_ms=101.0, spread_ms=3.0)}


def accuracy_of(correct: Sequence[int]) -> float:
    return int(sum(correct)) / len(correct)


def interval_of(correct: Sequence[int]) -> tuple[float, ...]:
    return tuple(wilson(int(sum(correct)), len(correct)))


def example_attack(label: str, correct: Sequence[int], rng: np.random.Generator) -> AttackResult:
    """Return the result of one attack of `LABELS`, or of any other label."""
    images = len(correct)
    autoattack, minimum = label.startswith("autoattack"), label == "fmn"
    distances = np.where(np.asarray(correct) == 1, 0.0314, 0) + 0.02 * rng.random(images)
    settings: dict[str, Any] = {"name": label, "steps": 50}
    return AttackResult(
        label=label,
        kind="attack" if autoattack or minimum else "ensemble attack",
        settings={"name": "autoattack", "mode": "fast", "variant": "standard"} if autoattack else settings,
        mode="fast" if autoattack else None,
        robust_accuracy=accuracy_of(correct),
        interval=interval_of(correct),
        correct=tuple(map(int, correct)),
        distances=(0.0314,) * images,
        members_run=tuple(1 + int(v) for v in rng.integers(0, 3, images)),
        passes=Passes(forward=300 * images, backward=250 * images),
        seconds=12.5,
        parts={"apgd20": 30, "apgd_focused": 12, "square": 0} if autoattack else None,
        minimum_distances=(None, *map(float, distances[1:])) if minimum else None,
        median_distance=float(np.median(distances[1:])) if minimum else None,
    )


def example_evaluation(
    name: str = "digits & <friends>", *, robust: float = 0.5, images: int = 200, members: int = 3, seed: int = 0
) -> EvaluationResult:
    """Return an evaluation on the same images whatever the seed.

    Args:
        name: of the classifier.
        robust: about the accuracy under each attack.
        images: test images.
        members: of the ensemble; 1 for a single model without attacks on ensembles.
        seed: decides the outcomes.
    """
    rng = np.random.default_rng(seed)
    clean = (rng.random(images) < 0.85).astype(int)
    strength = rng.random(images)
    labels = LABELS if members > 1 else tuple(label for label in LABELS if label.startswith(("auto", "fmn")))
    attacks = [
        example_attack(label, clean * (strength < robust + 0.02 * i + 0.05 * rng.random(images)), rng)
        for i, label in enumerate(labels)
    ]
    result = EvaluationResult(
        name=name,
        command=f"sparsemble evaluate runs/{name}",
        model=ModelRecord(
            kind="run",
            path="runs/digits",
            sha256="5e" * 32,
            architecture="Ensemble" if members > 1 else "ResNet",
            parameters=11_200_000,
            nonzeros=2_240_000,
            sparsity=0.8,
            members=members,
            combiner="mean_probability" if members > 1 else None,
            rule="die" if members > 1 else None,
            selected_on="held-out",
        ),
        data=DataRecord(
            name="cifar10",
            sha256="ab" * 32,
            images=images,
            subset_seed=4,
            classes=10,
            indices=tuple(range(0, 3 * images, 3)),
        ),
        threat=ThreatRecord(norm="linf", eps=8 / 255, eps_text="8/255"),
        seed=0,
        device="cpu",
        clean_accuracy=accuracy_of(clean),
        clean_interval=interval_of(clean),
        clean_correct=tuple(map(int, clean)),
        attacks=tuple(attacks),
        worst_case=union(clean, attacks),
        members_run=MembersRun(
            clean=1.21,
            attacked=1.87,
            slowdown=2.64 if members > 1 else None,
            clean_counts=(160, 30, 10)[:members] if members > 1 else (),
            attacked_counts=(90, 50, 60)[:members] if members > 1 else (),
        ),
        cost=Cost(
            bytes=1_330_000,
            peak_memory=9_000_000,
            macs_dense=1_670_000_000,
            macs_nonzero=122_000_000.5,
            latency={"torch": TIMES},
        ),
        security_curve=SecurityCurve(
            attack="pgd40",
            images=images,
            eps=EPS,
            accuracy=(accuracy_of(clean), 0.62, 0.5, 0.33, 0.2, 0.04, 0.01, 0.0),
        ),
        members=example_members(members, images, rng) if members > 1 else None,
        checks=tuple(
            CheckResult(number=i, name=f"name of check {i}", status=NOT_PASSED.get(i, "passed"), detail=f"detail {i}")
            for i in range(1, 51)
        ),
        seconds=512.0,
        passes=total(attacks),
        machine={"processor": "a processor", "cores": 2, "device": "cpu", "platform": "Linux x86_64"},
        versions={"sparsemble": "0.1.0", "torch": "2.13.0"},
        source="a1b2c3",
    )
    return result


def example_corruptions(images: int = 200) -> CorruptionRecord:
    """Return accuracies that fall with severity."""
    rows = []
    for i, name in enumerate(CORRUPTIONS):
        accuracy = tuple(0.8 - 0.02 * i - 0.08 * severity for severity in range(5))
        rows.append(CorruptionAccuracy(name=name, accuracy=accuracy, mean=sum(accuracy) / 5))
    return CorruptionRecord(
        source="generated",
        parameters="CIFAR-10-C",
        seed=0,
        images=images,
        corruptions=tuple(rows),
        mean=sum(row.mean for row in rows) / len(rows),
        inside=12,
        missed=0,
    )


def union(clean: Sequence[int], attacks: Sequence[AttackResult]) -> WorstCase:
    """Return the worst case over the clean images and all attacks."""
    correct = np.min([clean, *(attack.correct for attack in attacks)], axis=0)
    return WorstCase(
        accuracy=accuracy_of(correct), interval=interval_of(correct), correct=tuple(int(v) for v in correct)
    )


def total(attacks: Sequence[AttackResult]) -> Passes:
    """Return the passes of all attacks."""
    return Passes(
        forward=sum(attack.passes.forward for attack in attacks),
        backward=sum(attack.passes.backward for attack in attacks),
    )


def with_attacks(result: EvaluationResult, attacks: Sequence[AttackResult]) -> EvaluationResult:
    """Return the result with other attacks, and what follows from them."""
    return replace(
        result, attacks=tuple(attacks), worst_case=union(result.clean_correct, attacks), passes=total(attacks)
    )


def with_correct(result: EvaluationResult, correct: Sequence[int]) -> EvaluationResult:
    """Return the result of the same attacks with other outcomes; clean images have them, too."""
    outcome: dict[str, Any] = {"correct": tuple(map(int, correct)), "interval": interval_of(correct)}
    attacks = [replace(attack, robust_accuracy=accuracy_of(correct), **outcome) for attack in result.attacks]
    return replace(
        result,
        clean_accuracy=accuracy_of(correct),
        clean_interval=interval_of(correct),
        clean_correct=outcome["correct"],
        attacks=tuple(attacks),
        worst_case=union(correct, attacks),
    )


def example_members(members: int, images: int, rng: np.random.Generator) -> MembersTable:
    transfer = 0.6 + 0.1 * rng.random((members, members))
    robust = [0.4 + 0.02 * i for i in range(members)]
    np.fill_diagonal(transfer, robust)
    return MembersTable(
        names=tuple(f"member {i}" for i in range(1, members + 1)),
        images=images,
        clean=tuple(0.8 + 0.01 * i for i in range(members)),
        robust=tuple(robust),
        transfer=tuple(map(tuple, transfer.tolist())),
    )


def example_images(channels: int = 3, count: int = 4) -> Examples:
    rng = np.random.default_rng(0)
    clean = rng.random((count, channels, 8, 8), dtype=np.float32)
    labels = np.arange(count)
    return Examples(
        clean=clean,
        adversarial=clean * np.float32(0.9),
        label=labels,
        clean_prediction=labels,
        adversarial_prediction=(labels + labels % 2) % 10,
    )


def example_run(name: str = "digits & <friends>") -> RunSummary:
    """Return the summary of a run of six rows."""
    rows = []
    for i, row in enumerate(ROW_NAMES):
        result = example_evaluation(
            row, robust=0.5 + 0.02 * i, members=3 if row.startswith("ensemble") else 1, images=40
        )
        latency = {"torch": TIMES, "engine": TIMES}
        cost = replace(result.cost, latency=latency, training_passes=712_000, training_seconds=21.0)
        checks = result.checks if row == "ensemble_dynamic" else ()
        rows.append(replace(result, cost=cost, checks=checks, members_run=replace(result.members_run, attacked=1.71)))
    outcome = HeldOutOutcome(clean=0.98, worst_case=0.85, members_run=1.1, attacked_members_run=1.6)
    return RunSummary(
        name=name,
        command="sparsemble run digits --seed 3",
        seed=3,
        rows=tuple(rows),
        selection=SelectionRecord(
            ensemble=("nis-1", "erm-2", "ase-1"),
            robust_diversity=0.61,
            threshold=0.7,
            reason="the most diverse ensemble",
            at_chance=("ase-2",),
        ),
        stopping=StoppingRecord(
            rule="die",
            settings={"a": 4.0},
            order=("erm-2", "nis-1", "ase-1"),
            images=148,
            allowed=1,
            tried=90,
            outcome=outcome,
            full_ensemble=outcome,
            sensitivity=(SensitivityRecord(setting="a", factor=0.9, outcome=outcome),),
        ),
        against_parent=paired_test(rows[-1], rows[0]),
        chance=ChanceLevel(images=40, largest_class=4, least=11),
        machine={"processor": "a processor", "threads": 2},
        recipe={"seed": 3, "threat": {"norm": "linf", "eps": 0.15}},
        versions={"torch": "2.13.0"},
    )


def example_epochs(count: int, **changes: Any) -> tuple[EpochRecord, ...]:
    """Return epochs of falling loss; `changes` are fields of the last one."""
    epochs = [EpochRecord(epoch=i, loss=2.5 / i, learning_rate=0.1) for i in range(1, count + 1)]
    return (*epochs[:-1], replace(epochs[-1], **changes))


def example_details() -> RunDetails:
    """Return details of the run of `example_run`."""
    names = ("nis-1", "erm-2", "ase-1", "ase-2")
    held_out = HeldOutAccuracy(clean=0.9, robust=0.5)
    return RunDetails(
        classes=tuple("0123456789"),
        layers=LayerSparsity(
            names=("conv", "head"), weights=(900, 100), sparsity={"nis": (0.8, 0.9), "erm": (0.7, 0.95)}
        ),
        overlap=MaskOverlap(names=names, jaccard=tuple((0.3,) * i + (1.0,) + (0.3,) * (3 - i) for i in range(4))),
        pool=tuple(
            SubModelRecord(
                name=name,
                weights=1000,
                nonzeros=200,
                dead_channels=3,
                dead_weights=12,
                macs_dense=9000,
                macs_nonzero=2000,
                before_finetuning=HeldOutAccuracy(clean=0.6, robust=0.2),
                after_finetuning=held_out,
            )
            for name in names
        ),
        trainings=(
            TrainingRecord(name="dense", epochs=example_epochs(3, held_out=held_out)),
            TrainingRecord(name="ensemble", epochs=example_epochs(1, held_out=held_out)),
        ),
    )
