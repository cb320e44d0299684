"""What 8-bit arithmetic changes: an ensemble in float32 and in 8 bits, each attacked itself, image by image."""

from collections.abc import Sequence

from torch import Tensor

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.ensemble.deployed import Deployed
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.results import AccuracyChange, ArithmeticAccuracy, ArithmeticChange
from sparsemble.core.threat import ThreatModel
from sparsemble.data.dataset import Split
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.run_attacks import Outcomes, accuracy, run_attacks
from sparsemble.evaluation.statistics import paired_difference


def attacks_on_both(gradient: Attack, black_box: Sequence[Attack]) -> tuple[EnsembleAttack, ...]:
    """Return what both are attacked with: by gradients through all members and the deployed prefix, and by queries.

    Args:
        gradient: follows gradients; in 8 bits they pass the rounding (straight-through).
        black_box: need none, so that nothing which rounding does to gradients can mislead them.
    """
    return (
        SurrogateAttack(attack=gradient, surrogate=FullEnsemble()),
        *(
            SurrogateAttack(attack=attack, surrogate=Deployed(), use_deployed_logits=False)
            for attack in (gradient, *black_box)
        ),
    )


def arithmetic_change(
    float32: tuple[Ensemble, StoppingRule],
    int8: tuple[Ensemble, StoppingRule],
    split: Split,
    threat: ThreatModel,
    attacks: Sequence[EnsembleAttack],
    *,
    seed: int,
) -> ArithmeticChange:
    """Return the accuracies of an ensemble in both arithmetics, and their differences with paired 95 % intervals.

    Args:
        float32: the ensemble and its stopping rule.
        int8: the same in 8 bits, and the rule that was calibrated for that.
        split: labelled images.
        threat: what the adversary may do.
        attacks: run on each of both, never on one for the other.
        seed: of attack starts, >= 0.
    """
    outcomes = [
        run_attacks(
            EvaluationJob(model=model, rule=rule, split=split, threat=threat, attacks=tuple(attacks), seed=seed)
        )
        for model, rule in (float32, int8)
    ]
    return ArithmeticChange(
        images=len(split),
        float32=_accuracy(outcomes[0]),
        int8=_accuracy(outcomes[1]),
        clean=_change(*(each.clean.correct for each in outcomes)),
        robust=_change(*(each.worst_case for each in outcomes)),
    )


def _accuracy(outcomes: Outcomes) -> ArithmeticAccuracy:
    return ArithmeticAccuracy(
        clean=outcomes.clean_accuracy,
        robust=outcomes.robust_accuracy,
        attacks={label: accuracy(outcome.correct) for label, outcome in outcomes.attacks.items()},
        members_run=float(outcomes.clean.members_run.double().mean()),
    )


def _change(float32: Tensor, int8: Tensor) -> AccuracyChange:
    difference, low, high = paired_difference(int8.numpy(), float32.numpy())
    return AccuracyChange(difference=difference, interval=(low, high))
