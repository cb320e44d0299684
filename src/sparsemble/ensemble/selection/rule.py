"""Selection rules: choose the ensemble from a pool of sub-models, by their stored logits on held-out images."""

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner
from sparsemble.core.registry import Component, Registry
from sparsemble.core.types import Flags, Labels, MemberLogits


@final
@dataclass(frozen=True, kw_only=True)
class PoolLogits:
    """Logits of all N sub-models on the same held-out images, clean and attacked."""

    logits: Mapping[str, MemberLogits]
    """(N, B, K) for each set: `clean`; `pool`, crafted on the combined pool; one crafted on each sub-model alone."""
    y: Labels
    """True classes (B)."""
    combiner: Combiner
    """How members of the ensemble are combined."""

    @property
    def failures(self) -> Bool[Tensor, "N n"]:
        """Whether sub-model i misclassifies image j of the set `pool`."""
        return self.logits["pool"].argmax(-1) != self.y

    def correct(self, members: tuple[int, ...]) -> Flags:
        """Return which images (B) these members, combined, classify correctly in every set."""
        by_set = [self.combiner(logits[list(members)]).argmax(1) == self.y for logits in self.logits.values()]
        in_all = by_set[0]
        for correct in by_set[1:]:
            in_all = in_all & correct
        return in_all


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The members chosen from the pool, and why."""

    members: tuple[int, ...]
    """Positions in the pool, ascending."""
    robust_diversity: float
    """Of these members, at most 1."""
    reason: str
    """One sentence: which part of the rule decided."""
    ensembles_scored: int
    """Ensembles compared."""


class SelectionRule(Component):
    """Chooses the members of the ensemble from the logits of the pool."""

    @abstractmethod
    def __call__(self, pool: PoolLogits, largest: int) -> Selection:
        """Choose 2 to `largest` of the N sub-models, by their logits on held-out images, clean and adversarial."""


def select(pool: PoolLogits, size: int, rule: SelectionRule) -> Selection:
    """Choose an ensemble from stored logits of a pool; nothing is attacked here.

    Args:
        pool: logits on held-out images, clean and adversarial.
        size: the most members, 2..N.
        rule: how to choose.

    Source: EED main paper, section 4.1.
    """
    if not 2 <= size <= len(pool.failures):
        raise InputError(f"size = {size} must be between 2 and {len(pool.failures)}, the sub-models in the pool")
    return rule(pool, size)


def robust_diversity(failures: Bool[Tensor, "N n"], members: tuple[int, ...]) -> float:
    """Return the robust diversity of an ensemble, members of a pool: 0 where they always fail together, 1 where never.

    Source: EED main paper, eqs. 12-13; `all_diversities` has the formula.
    """
    return float(all_diversities(failures, len(members), [members])[0])


def all_diversities(failures: Bool[Tensor, "N n"], size: int, ensembles: list[tuple[int, ...]]) -> np.ndarray:
    """Return the robust diversity of each ensemble of one size; 1 for an ensemble that never fails.

    1 - p_two / p_one, where p_one is the mean failure rate of the members and p_two the mean rate at which two of them
    fail together. One matrix product gives the co-failure counts of all pairs.

    Args:
        failures: whether sub-model i misclassifies adversarial image j.
        size: members of each ensemble, at least 2.
        ensembles: positions of their members among the N sub-models.

    Source: EED main paper, eqs. 12-13. Departs: read as generalised diversity, with p_i the probability that exactly i
    members fail; as printed, the value depends on how members are numbered (`literal_diversity`).
    """
    counts = failures.double() @ failures.double().T
    joint_failures, index = counts.cpu().numpy(), np.asarray(ensembles)
    single = joint_failures[index, index].sum(1) / size
    pairs = sum(joint_failures[index[:, i], index[:, j]] for i, j in itertools.combinations(range(size), 2))
    double = pairs / (size * (size - 1) / 2)
    return np.where(single > 0, 1 - double / np.maximum(single, 1e-300), 1.0)


selection_rules: Registry[SelectionRule] = Registry("selection rule", SelectionRule)
