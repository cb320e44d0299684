"""The smallest ensemble that is diverse enough (EED main paper, section 4.1)."""

import itertools
from dataclasses import dataclass
from typing import final

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.ensemble.selection.rule import Evidence, Selected, SelectionRule, all_diversities, selection_rules


@final
@selection_rules.register("robust_diversity")
@dataclass(frozen=True, kw_only=True)
class RobustDiversity(SelectionRule):
    """The smallest ensemble whose robust diversity reaches the threshold; the most diverse one where none does.

    Ties go to the ensemble with the lower mean failure rate. Source: EED main paper, eqs. 12-13 and section 5.1;
    reading and fallback of method.md 2.5. With `exact_size` only ensembles of the largest size are compared, so that the
    deployed sparsity is the one asked for.
    """

    threshold: float = 0.7
    """Robust diversity that is enough, in [0, 1]."""
    exact_size: bool = True
    """Choose only among ensembles of the size that the budget allows."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold = {self.threshold:g} must lie in [0, 1]")

    def __call__(self, evidence: Evidence, largest: int) -> Selected:
        """Choose an ensemble of 2 to `largest` sub-models."""
        failures = evidence.failures
        pool = len(failures)
        sizes = range(largest if self.exact_size else 2, largest + 1)
        rate = failures.double().mean(1).cpu().numpy()
        scored, best = 0, (-1.0, 0.0, (0,))
        for size in sizes:
            ensembles = list(itertools.combinations(range(pool), size))
            diversity = all_diversities(failures, size, ensembles)
            mean_rate = rate[np.asarray(ensembles)].mean(1)
            scored += len(ensembles)
            first = np.lexsort((mean_rate, -diversity))[0]
            best = (float(diversity[first]), float(mean_rate[first]), ensembles[first])
            if best[0] >= self.threshold:
                reason = f"the most diverse ensemble of {size} reaches the threshold {self.threshold:g}"
                return Selected(ensemble=best[2], robust_diversity=best[0], reason=reason, ensembles_scored=scored)
        reason = (
            f"no ensemble reaches the threshold {self.threshold:g} (independent failures at this failure rate would give "
            f"{1 - best[1]:.2f}), so the most diverse ensemble of {largest} was taken"
        )
        return Selected(ensemble=best[2], robust_diversity=best[0], reason=reason, ensembles_scored=scored)
