"""Robust diversity exactly as printed in the paper (EED main paper, eqs. 12-13)."""

import itertools
from dataclasses import dataclass
from typing import final

import numpy as np

from sparsemble.core.argument_checks import check_interval
from sparsemble.ensemble.selection.rule import PoolLogits, Selection, SelectionRule, robust_diversity, selection_rules


@final
@selection_rules.register("literal_diversity")
@dataclass(frozen=True, kw_only=True)
class LiteralDiversity(SelectionRule):
    """Chooses the smallest ensemble whose diversity, as printed, reaches the threshold; for comparison only.

    1 - p_two / p_one with p_one = sum_i i/S p_i, p_two = sum_i i (i - 1) / (S (S - 1)) p_i, where p_i is the failure
    rate of the i-th member. It depends on how members are numbered (here: as in the pool), p_one may exceed 1, and
    equal members of any size have 1/3; `robust_diversity` is the consistent reading.

    Source: EED main paper, eqs. 12-13.
    """

    threshold: float = 0.7
    """Diversity that is enough, in [0, 1]."""
    exact_size: bool = True
    """Choose only among ensembles of the size that the budget allows."""

    def __post_init__(self) -> None:
        check_interval("[0, 1]", threshold=self.threshold)

    def __call__(self, pool: PoolLogits, largest: int) -> Selection:
        """Choose 2 to `largest` sub-models."""
        failures = pool.failures
        rate = failures.double().mean(1).cpu().numpy()
        scored = 0
        for size in range(largest if self.exact_size else 2, largest + 1):
            ensembles = list(itertools.combinations(range(len(rate)), size))
            diversity = literal_diversity(rate[np.asarray(ensembles)])
            scored += len(ensembles)
            best = int(np.argmax(diversity))
            if diversity[best] >= self.threshold or size == largest:
                break
        reached = "reaches" if diversity[best] >= self.threshold else "is highest, though below"
        return Selection(
            members=ensembles[best],
            robust_diversity=robust_diversity(failures, ensembles[best]),
            reason=f"as printed, the diversity {diversity[best]:.2f} of this ensemble {reached} the threshold "
            f"{self.threshold:g}",
            ensembles_scored=scored,
        )


def literal_diversity(rates: np.ndarray) -> np.ndarray:
    """Return the diversity as printed, from members' failure rates (ensembles, S); 1 for an ensemble without failures.

    Source: EED main paper, eqs. 12-13.
    """
    size = rates.shape[1]
    i = np.arange(1, size + 1)
    p_one, p_two = rates @ (i / size), rates @ (i * (i - 1) / (size * (size - 1)))
    return np.where(p_one > 0, 1 - p_two / np.maximum(p_one, 1e-300), 1.0)
