"""How an ensemble is chosen from the pool."""

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from sparsemble.core.interfaces import Combiner
from sparsemble.core.registry import Component, Registry
from sparsemble.core.types import Flags, Labels, MemberLogits


@final
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the sub-models say to held-out images; the same images for all."""

    logits: Mapping[str, MemberLogits]
    """(N, B, K) for each set: `clean`; `pool`, crafted against the average of all; one crafted against each alone."""
    y: Labels
    combiner: Combiner

    @property
    def failures(self) -> Bool[Tensor, "N n"]:
        """Whether sub-model i errs on image j of the set that was crafted against the average of the pool."""
        return self.logits["pool"].argmax(-1) != self.y

    def right(self, ensemble: tuple[int, ...]) -> Flags:
        """Return which images an ensemble answers rightly in every set."""
        answers = [self.combiner(logits[list(ensemble)]).argmax(1) == self.y for logits in self.logits.values()]
        found = answers[0]
        for one in answers[1:]:
            found = found & one
        return found


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A chosen ensemble and why."""

    ensemble: tuple[int, ...]
    """Positions in the pool, ascending."""
    robust_diversity: float
    reason: str
    """One sentence: which part of the rule decided."""
    ensembles_scored: int


class SelectionRule(Component):
    """Chooses an ensemble from what the sub-models say to held-out images."""

    @abstractmethod
    def __call__(self, evidence: Evidence, largest: int) -> Selected:
        """Choose among the ensembles of 2 to `largest` of the N sub-models.

        Args:
            evidence: answers on held-out images, clean and adversarial.
            largest: the most members the budget allows, 2..N.
        """


def robust_diversity(failures: Bool[Tensor, "N n"], ensemble: tuple[int, ...]) -> float:
    """Return 1 - p_two / p_one of an ensemble: 0 where members always fail together, 1 where never.

    p_one is the mean failure rate, p_two the mean rate at which two members fail together.

    Source: EED main paper, eqs. 12-13, read as generalised diversity (method.md 2.5, E-9).
    """
    return float(all_diversities(failures, len(ensemble), [ensemble])[0])


def all_diversities(failures: Bool[Tensor, "N n"], size: int, ensembles: list[tuple[int, ...]]) -> np.ndarray:
    """Return the robust diversity of each ensemble of this size; 1 for an ensemble that never fails.

    Every ensemble follows from the pairwise co-failure counts, so one matrix product serves all.
    """
    counts = failures.double() @ failures.double().T
    together, index = counts.cpu().numpy(), np.asarray(ensembles)
    single = together[index, index].sum(1) / size
    pairs = sum(together[index[:, i], index[:, j]] for i, j in itertools.combinations(range(size), 2))
    double = pairs / (size * (size - 1) / 2)
    return np.where(single > 0, 1 - double / np.maximum(single, 1e-300), 1.0)


selection_rules: Registry[SelectionRule] = Registry("selection rule", SelectionRule)
