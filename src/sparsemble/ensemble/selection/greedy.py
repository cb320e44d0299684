"""Grow the ensemble by who helps its worst case most."""

from dataclasses import dataclass
from typing import final

from sparsemble.ensemble.selection.rule import Evidence, Selected, SelectionRule, robust_diversity, selection_rules


@final
@selection_rules.register("greedy")
@dataclass(frozen=True, kw_only=True)
class Greedy(SelectionRule):
    """Starts with the most robust sub-model and adds, until the budget is used, whoever makes the ensemble most robust.

    An ensemble is as robust as its combined answers are right, clean and on every adversarial set: those crafted against
    the average of the pool and against each sub-model alone. Ties go to the lower failure rate, then to the first in
    the pool. The sets are not crafted against the ensembles themselves, so the numbers flatter; they serve to compare.

    Source: ours.
    """

    def __call__(self, evidence: Evidence, largest: int) -> Selected:
        """Choose `largest` sub-models."""
        failures = evidence.failures
        rate = failures.double().mean(1).tolist()
        ensemble: tuple[int, ...] = ()
        scored, right = 0, 0.0
        while len(ensemble) < largest:
            others = [i for i in range(len(failures)) if i not in ensemble]
            robust = {i: float(evidence.right((*ensemble, i)).double().mean()) for i in others}
            best = max(others, key=lambda i: (robust[i], -rate[i]))
            ensemble, right, scored = (*ensemble, best), robust[best], scored + len(others)
        chosen = tuple(sorted(ensemble))
        return Selected(
            ensemble=chosen,
            robust_diversity=robust_diversity(failures, chosen),
            reason=f"grown one by one; together right on {right:.3f} of the images, clean and on every adversarial set",
            ensembles_scored=scored,
        )
