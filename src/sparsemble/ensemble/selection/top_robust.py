"""The sub-models that are most robust by themselves."""

from dataclasses import dataclass
from typing import final

from sparsemble.ensemble.selection.rule import Evidence, Selected, SelectionRule, robust_diversity, selection_rules


@final
@selection_rules.register("top_robust")
@dataclass(frozen=True, kw_only=True)
class TopRobust(SelectionRule):
    """As many as the budget allows of those that are right most often, clean and on every adversarial set.

    What selection by diversity has to beat. Ties go to the first in the pool.
    """

    def __call__(self, evidence: Evidence, largest: int) -> Selected:
        """Choose `largest` sub-models."""
        failures = evidence.failures
        right = [int(evidence.right((i,)).sum()) for i in range(len(failures))]
        best = sorted(range(len(right)), key=lambda i: -right[i])[:largest]
        ensemble = tuple(sorted(best))
        share = right[best[-1]] / len(evidence.y)
        return Selected(
            ensemble=ensemble,
            robust_diversity=robust_diversity(failures, ensemble),
            reason=f"the {largest} that are most robust alone, each right on {share:.3f} of the images or more",
            ensembles_scored=len(right),
        )
