"""Greedy selection by worst-case accuracy."""

from dataclasses import dataclass
from typing import final

from sparsemble.ensemble.selection.rule import PoolLogits, Selection, SelectionRule, robust_diversity, selection_rules


@final
@selection_rules.register("greedy")
@dataclass(frozen=True, kw_only=True)
class Greedy(SelectionRule):
    """Starts with the most robust sub-model and repeatedly adds the one that makes the ensemble most robust.

    Robustness is the share of images that the combined members classify correctly, clean and on every adversarial set:
    those crafted on the combined pool and on each sub-model alone. Ties go to the lower failure rate, then to the first
    in the pool. No set is crafted on the candidate ensembles themselves, so the value is optimistic; it serves to rank.

    Source: ours.
    """

    def __call__(self, pool: PoolLogits, largest: int) -> Selection:
        """Choose `largest` sub-models."""
        failures = pool.failures
        rate = failures.double().mean(1).tolist()
        members: tuple[int, ...] = ()
        scored, accuracy = 0, 0.0
        while len(members) < largest:
            others = [i for i in range(len(failures)) if i not in members]
            robust = {i: float(pool.correct((*members, i)).double().mean()) for i in others}
            best = max(others, key=lambda i: (robust[i], -rate[i]))
            members, accuracy, scored = (*members, best), robust[best], scored + len(others)
        chosen = tuple(sorted(members))
        return Selection(
            members=chosen,
            robust_diversity=robust_diversity(failures, chosen),
            reason=f"added one by one; combined they are correct on {accuracy:.3f} of the images, clean and on every "
            "adversarial set",
            ensembles_scored=scored,
        )
