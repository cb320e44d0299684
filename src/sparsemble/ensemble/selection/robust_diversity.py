"""Selection by robust diversity (EED main paper, section 4.1)."""

import itertools
from dataclasses import dataclass
from typing import final

import numpy as np

from sparsemble.core.argument_checks import check_interval
from sparsemble.ensemble.selection.rule import PoolLogits, Selection, SelectionRule, all_diversities, selection_rules


@final
@selection_rules.register("robust_diversity")
@dataclass(frozen=True, kw_only=True)
class RobustDiversity(SelectionRule):
    """Chooses the smallest ensemble whose robust diversity reaches the threshold; else the most diverse one.

    Ties go to the ensemble with the lower mean failure rate.

    Source: EED main paper, eqs. 12-13 and sections 4.1 and 5.1. Departs: with `exact_size` only ensembles of the
    largest size are compared, so that the deployed sparsity is the requested one, and the threshold decides nothing;
    where no ensemble reaches the threshold, the most diverse one of the largest size is taken.
    """

    threshold: float = 0.7
    """Robust diversity that is enough, in [0, 1]; without effect on the choice while `exact_size` holds."""
    exact_size: bool = True
    """Choose only among ensembles of the size that the budget allows. False, as in the paper: the smallest ensemble
    that reaches the threshold; its sparsity is higher than requested where it has fewer members."""

    def __post_init__(self) -> None:
        check_interval("[0, 1]", threshold=self.threshold)

    def __call__(self, pool: PoolLogits, largest: int) -> Selection:
        """Choose 2 to `largest` sub-models."""
        failures = pool.failures
        sizes = range(largest if self.exact_size else 2, largest + 1)
        rate = failures.double().mean(1).cpu().numpy()
        scored, best = 0, (-1.0, 0.0, (0,))
        for size in sizes:
            ensembles = list(itertools.combinations(range(len(failures)), size))
            diversity = all_diversities(failures, size, ensembles)
            mean_rate = rate[np.asarray(ensembles)].mean(1)
            scored += len(ensembles)
            first = np.lexsort((mean_rate, -diversity))[0]
            best = (float(diversity[first]), float(mean_rate[first]), ensembles[first])
            if best[0] >= self.threshold:
                reason = self._reached(size)
                return Selection(members=best[2], robust_diversity=best[0], reason=reason, ensembles_scored=scored)
        reason = (
            f"no ensemble reaches the threshold {self.threshold:g} (independent failures at this failure rate would "
            f"give {1 - best[1]:.2f}), so the most diverse ensemble of {largest} was taken"
        )
        return Selection(members=best[2], robust_diversity=best[0], reason=reason, ensembles_scored=scored)

    def _reached(self, size: int) -> str:
        if self.exact_size:
            return (
                f"the most diverse ensemble of {size}, the only size compared (exact_size), is above the threshold "
                f"{self.threshold:g}"
            )
        return f"the most diverse ensemble of {size}, the fewest members that reach the threshold {self.threshold:g}"
