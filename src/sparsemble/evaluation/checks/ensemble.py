"""Was an ensemble attacked as an ensemble, and compared fairly (checks 28 to 32)."""

from collections.abc import Collection, Mapping
from typing import Any

from sparsemble.core.results import CheckResult, EvaluationResult
from sparsemble.evaluation.checks import NOISE, skipped, verdict
from sparsemble.evaluation.checks.settings import is_whole, members_alone, named, settings_of, uses

SINGLE = "a single model was evaluated"
MARGINS = ("margin", "dlr", "apgd_targeted", "autoattack", "carlini_wagner", "square", "deepfool", "fmn")
"""Losses that are margins rather than cross-entropy, and attacks that maximise one."""
EQUAL_COST = 0.05
"""Fraction by which costs that are called equal may differ."""
ABLATIONS = ("combiner only", "no regularisers", "no stopping rule", "dense members")
"""Rows that show what each part of a method brings."""


def combiners_attacked(result: EvaluationResult, deployed: str, others: Collection[str]) -> CheckResult:
    """Check 28: the whole ensemble was attacked through its own combiner and through every other one; no passes.

    Args:
        result: of the ensemble.
        deployed: name of its combiner.
        others: names of all others.
    """
    if result.model.members == 1:
        return skipped(28, SINGLE)
    settings = settings_of(result)
    seen = {surrogate["combiner"]["name"] for surrogate in named(settings, "combined")}
    seen |= {deployed} if any(is_whole(attack) for attack in settings) else set()
    lacking = sorted({deployed, *others} - seen)
    detail = f"attacked through {', '.join(sorted(seen)) or 'none'}; not through {', '.join(lacking) or 'none'}"
    return verdict(28, not lacking, detail)


def members_attacked(result: EvaluationResult) -> CheckResult:
    """Check 29: every member alone, one after the other, re-weighted, and a margin of the whole ensemble; no passes."""
    if result.model.members == 1:
        return skipped(29, SINGLE)
    settings = settings_of(result)
    alone = members_alone(settings)
    lacking = [f"member {i}" for i in range(1, result.model.members + 1) if i not in alone]
    lacking += [name for name in ("sequential", "reweighted") if not uses(settings, name)]
    if not any(is_whole(attack) and uses(attack, *MARGINS) for attack in settings):
        lacking.append("a margin of the whole ensemble")
    return verdict(29, not lacking, f"not attacked: {', '.join(lacking) or 'nothing'}")


def members_reported(result: EvaluationResult) -> CheckResult:
    """Check 30: each member's own accuracy and the transfer from each to each, and these fit together; no passes.

    Images crafted on one member must not break another more than those crafted on itself.
    """
    if result.model.members == 1:
        return skipped(30, SINGLE)
    count, table = result.model.members, result.members
    if table is None:
        return skipped(30, f"the {count} members were not attacked one by one")
    robust, transfer = table.robust, table.transfer
    faults = [
        f"member {i + 1}: {robust[i]:.3f} alone, {transfer[i][i]:.3f} in the table of transfer"
        for i in range(count)
        if abs(transfer[i][i] - robust[i]) > NOISE
    ]
    faults += [
        f"images crafted on member {i + 1} break member {j + 1} more than its own do"
        for i in range(count)
        for j in range(count)
        if transfer[i][j] < robust[j] - NOISE
    ]
    detail = "; ".join(faults) or f"{count} members, best alone {max(robust):.3f}"
    if result.worst_case.accuracy <= max(robust):
        detail += f"; FLAG: the ensemble ({result.worst_case.accuracy:.3f}, all attacks) is no better than that"
    return verdict(30, not faults, detail)


def single_models_beside(
    ensemble: Mapping[str, Any], member: Mapping[str, Any] | None, dense: Mapping[str, Any] | None
) -> CheckResult:
    """Check 31: a sparse model of as many non-zeros and a dense one of as many operations, no smaller; no passes.

    Args:
        ensemble: `accuracy`, `nonzeros` and `macs`.
        member: the same of the best single sparse model.
        dense: the same of an adversarially trained dense model.
    """
    if member is None or dense is None:
        lacking = [name for name, row in (("a sparse model", member), ("a dense model", dense)) if row is None]
        return skipped(31, f"{' and '.join(lacking)} of equal cost was not evaluated")
    smaller, larger = [], []
    for name, row, cost in (("the sparse model", member, "nonzeros"), ("the dense model", dense, "macs")):
        text = f"{name} has {row[cost]:g} {cost}, the ensemble {ensemble[cost]:g}"
        smaller += [text] if row[cost] < ensemble[cost] * (1 - EQUAL_COST) else []
        larger += [text] if row[cost] > ensemble[cost] * (1 + EQUAL_COST) else []
    rows = {"ensemble": ensemble, "sparse model": member, "dense model": dense}
    accuracies = ", ".join(f"{name} {row['accuracy']:.3f}" for name, row in rows.items())
    if larger and not smaller:
        return skipped(31, "; ".join([f"no model of equal cost: {', '.join(larger)}", accuracies]))
    return verdict(31, not smaller, "; ".join([*smaller, accuracies]))


def ablations_reported(rows: Collection[str]) -> CheckResult:
    """Check 32: the rows without each part are there (`ABLATIONS`); no passes."""
    lacking = [name for name in ABLATIONS if name not in rows]
    if len(lacking) == len(ABLATIONS):
        return skipped(32, "one model was evaluated; ablations are rows of a study")
    return verdict(32, not lacking, f"missing: {', '.join(lacking) or 'none'}")
