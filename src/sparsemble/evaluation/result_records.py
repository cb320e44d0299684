"""From outcomes to the records of a result: the model, every attack, members run."""

import json
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.attacks.minimum_norm import MinimumNorm
from sparsemble.core.interfaces import Ensemble, members_of
from sparsemble.core.registry import to_dict
from sparsemble.core.results import AttackResult, MembersRun, ModelRecord, Passes, WorstCase
from sparsemble.core.types import Counts, Flags
from sparsemble.evaluation.cost import count_weights
from sparsemble.evaluation.fingerprint import weights_hash
from sparsemble.evaluation.job import AnyAttack, EvaluationJob
from sparsemble.evaluation.loaded_model import LoadedModel
from sparsemble.evaluation.outcome_store import Outcome
from sparsemble.evaluation.run_attacks import CLASSES, Outcomes, accuracy, source_hash
from sparsemble.evaluation.statistics import wilson


def model_record(job: EvaluationJob, target: LoadedModel) -> ModelRecord:
    """Return what is known of the model."""
    model = job.model
    single = members_of(model)[0] if job.members == 1 else model
    weights = count_weights(model)
    total = weights.total if job.members == 1 or target.dense_weights is None else target.dense_weights
    return ModelRecord(
        kind=target.kind,
        path=target.path,
        sha256=weights_hash(single),
        architecture=type(getattr(single, "body", single)).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        nonzeros=weights.nonzeros,
        sparsity=1 - weights.nonzeros / total if total else 0.0,
        claimed_sparsity=target.claimed_sparsity,
        members=job.members,
        combiner=model.combiner.name if isinstance(model, Ensemble) and job.members > 1 else None,
        rule=job.rule.name if job.rule and job.members > 1 and job.stops_early else None,
        selected_on=target.selected_on,
        extra_data=target.extra_data,
        notes=target.notes,
    )


def outcome_fields(job: EvaluationJob, attacks: Sequence[AnyAttack], outcomes: Outcomes) -> dict[str, Any]:
    """Return the fields of an `EvaluationResult` that the outcomes decide.

    Args:
        job: what was attacked.
        attacks: all of the result, in its order.
        outcomes: of each of them.
    """
    clean, worst = outcomes.clean.correct, outcomes.worst_case
    results = [_attack_result(one, outcomes.attacks[one.label], job) for one in attacks]
    return {
        "clean_accuracy": accuracy(clean),
        "clean_interval": _interval(clean),
        "clean_correct": tuple(clean.int().tolist()),
        "attacks": tuple(results),
        "worst_case": WorstCase(
            accuracy=accuracy(worst), interval=_interval(worst), correct=tuple(worst.int().tolist())
        ),
        "members_run": _members_run(job, attacks, outcomes),
        "seconds": sum(result.seconds for result in results),
        "passes": Passes(
            forward=sum(result.passes.forward for result in results),
            backward=sum(result.passes.backward for result in results),
        ),
    }


def _attack_result(attack: AnyAttack, outcome: Outcome, job: EvaluationJob) -> AttackResult:
    """Return what one attack did."""
    classes, norm = job.classes or CLASSES, job.threat.norm
    inner, plain = attack, isinstance(attack, Attack)
    if isinstance(attack, SurrogateAttack) and isinstance(attack.surrogate, FullEnsemble):
        # A run attacks single models as ensembles of one; an attack that keeps its own label is one on any classifier.
        inner, plain = attack.attack, attack.label == attack.attack.label
    auto = inner if isinstance(inner, AutoAttack) else None
    forward, backward = outcome.total_passes()
    minimum = None if outcome.minimum.isnan().any() else outcome.minimum
    return AttackResult(
        label=attack.label,
        kind="attack" if plain else "ensemble attack",
        settings=json.loads(json.dumps(to_dict(attack), default=source_hash)),
        mode=auto.mode if auto else None,
        robust_accuracy=accuracy(outcome.correct),
        interval=_interval(outcome.correct),
        correct=tuple(outcome.correct.int().tolist()),
        distances=tuple(round(value, 7) for value in outcome.distance.tolist()),
        members_run=tuple(outcome.members_run.tolist()),
        passes=Passes(forward=forward, backward=backward),
        passes_by_image={"forward": _short(outcome.passes[:, 0]), "backward": _short(outcome.passes[:, 1])},
        seconds=float(outcome.seconds.sum()),
        parts={part.label: int((outcome.part == i).sum()) for i, part in enumerate(auto.schedule(classes, norm))}
        if auto
        else None,
        minimum_distances=None if minimum is None else tuple(_finite(value) for value in minimum.tolist()),
        median_distance=None if minimum is None else _finite(float(minimum.median())),
        minimum_norm=inner.norm if isinstance(inner, MinimumNorm) else None,
    )


def _interval(correct: Flags) -> tuple[float, float]:
    return wilson(int(correct.sum()), len(correct))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short(values: Tensor) -> list[float]:
    return [int(value) if value == int(value) else round(value, 3) for value in values.tolist()]


def _members_run(job: EvaluationJob, attacks: Sequence[AnyAttack], outcomes: Outcomes) -> MembersRun:
    """Return how many members run on average, clean and under the attacks that cost most."""
    means = {label: float(outcome.members_run.float().mean()) for label, outcome in outcomes.attacks.items()}
    most = max(means, key=lambda label: means[label])
    slow = [means[attack.label] for attack in attacks if isinstance(attack, EnsembleAttack) and attack.aims_at_cost]

    def counts(members_run: Counts) -> tuple[int, ...]:
        return tuple(members_run.bincount(minlength=job.members + 1)[1:].tolist())

    return MembersRun(
        clean=float(outcomes.clean.members_run.float().mean()),
        attacked=means[most],
        slowdown=max(slow) if slow else None,
        clean_counts=counts(outcomes.clean.members_run),
        attacked_counts=counts(outcomes.attacks[most].members_run),
    )
