"""Selection of the individually most robust sub-models."""

from dataclasses import dataclass
from typing import final

from sparsemble.ensemble.selection.rule import PoolLogits, Selection, SelectionRule, robust_diversity, selection_rules


@final
@selection_rules.register("top_robust")
@dataclass(frozen=True, kw_only=True)
class TopRobust(SelectionRule):
    """Chooses the sub-models that are correct most often, clean and on every adversarial set.

    The baseline for selection by diversity. Ties go to the first in the pool.
    """

    def __call__(self, pool: PoolLogits, largest: int) -> Selection:
        """Choose `largest` sub-models."""
        failures = pool.failures
        correct = [int(pool.correct((i,)).sum()) for i in range(len(failures))]
        best = sorted(range(len(correct)), key=lambda i: -correct[i])[:largest]
        members = tuple(sorted(best))
        fraction = correct[best[-1]] / len(pool.y)
        return Selection(
            members=members,
            robust_diversity=robust_diversity(failures, members),
            reason=f"the {largest} that are most robust alone, each correct on {fraction:.3f} of the images or more",
            ensembles_scored=len(correct),
        )
