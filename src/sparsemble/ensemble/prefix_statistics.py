"""Statistics of the first 1..M members that stopping rules use: confidence, change, hazard, stop probability."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sparsemble.core.argument_checks import check_at_least, check_finite
from sparsemble.core.interfaces import Combiner, StoppingRule
from sparsemble.core.types import Counts, MemberLogits
from sparsemble.ensemble.combiners.mean_probability import MeanProbability

SMALLEST = 1e-12
UNREACHABLE = 2.0
"""A squared confidence that no image reaches: as `tau_c`, a rule by hazards never stops early."""

PerPrefix = Float[Tensor, "M B"]
"""One number for each prefix of the ensemble and each image."""


def prefix_probabilities(member_logits: MemberLogits, combiner: Combiner) -> Float[Tensor, "M B K"]:
    """Return the probabilities that the first 1..M members, combined, give to each class, from logits (M, B, K).

    Source: EED main paper, eq. 20, the mean; EED supplement, section B.4, another combiner.
    """
    if not isinstance(combiner, MeanProbability):
        return torch.stack([combiner(member_logits[:m]).softmax(-1) for m in range(1, len(member_logits) + 1)])
    probabilities = member_logits.softmax(-1)
    counts = torch.arange(1, len(probabilities) + 1, device=probabilities.device).view(-1, 1, 1)
    return probabilities.cumsum(0) / counts


def _confidence_and_change(
    member_logits: MemberLogits, combiner: Combiner
) -> tuple[PerPrefix, Float[Tensor, "rest B"]]:
    """Return the confidence of every prefix and the change from each prefix to the next, from logits (M, B, K).

    C_1..C_M is the square of the highest combined probability; U_2..U_M the KL divergence, in nats, from the
    probabilities of t-1 members, combined, to those of t.

    Source: EED supplement, eqs. 29-30.
    """
    average = prefix_probabilities(member_logits, combiner)
    log_average = average.clamp_min(SMALLEST).log()
    change = (average[1:] * (log_average[1:] - log_average[:-1])).sum(-1)
    return average.amax(-1).square(), change


@dataclass(frozen=True, kw_only=True)
class HazardRule(StoppingRule):
    """A rule by hazards, which depend on the confidence of a prefix and its change."""

    a: float = 8.0
    """Weight of the change U_t, >= 0."""
    b: float = 8.0
    """Weight of the confidence C_t, > 0."""
    tau_u: float = 0.05
    """Change at which the hazard is balanced, in nats."""
    tau_c: float = 0.5
    """Squared confidence at which the hazard is balanced, in [0, 1]; well above 1 it never stops early."""

    def __post_init__(self) -> None:
        check_finite(a=self.a, b=self.b, tau_u=self.tau_u)
        check_at_least(0, tau_c=self.tau_c)

    def hazards(self, member_logits: MemberLogits, combiner: Combiner) -> PerPrefix:
        """Return the hazard q_t = sigmoid(-a (U_t - tau_u) + b (C_t - tau_c)), without the U term at t = 1.

        Source: EED supplement, eqs. 29-31. Departs: a threshold on each quantity, and change lowers the hazard; as
        printed the rule always stops after one member.
        """
        return torch.sigmoid(self.hazard_logits(member_logits, combiner))

    def hazard_logits(self, member_logits: MemberLogits, combiner: Combiner) -> PerPrefix:
        """Return the log-odds of the hazards, whose gradient does not vanish where a hazard rounds to 0 or 1."""
        confidence, change = _confidence_and_change(member_logits, combiner)
        doubt = torch.cat([torch.zeros_like(confidence[:1]), self.a * (change - self.tau_u)])
        return self.b * (confidence - self.tau_c) - doubt

    def candidates(self, member_logits: MemberLogits, combiner: Combiner) -> Iterable[StoppingRule]:
        """Return this rule, one that never stops early, and a grid of weights and thresholds.

        Thresholds are quantiles over held-out images. Because the second candidate never stops early, calibration can
        always fall back to the full ensemble.
        """
        confidence, change = _confidence_and_change(member_logits, combiner)
        levels = torch.linspace(0.02, 0.9, 12, device=change.device)
        # One member decides most clean images; the cheapest rules run a second one on about 1 % of them.
        low_levels = torch.tensor([0.0, 0.003, 0.007, 0.012], device=change.device)
        grid = itertools.product(
            (4.0, 32.0),
            (8.0, 32.0, 128.0),
            quantiles(change, levels[::4]) or [self.tau_u],
            quantiles(confidence[0], torch.cat([low_levels, levels])),
        )
        return [self, self._static(), *(type(self)(a=a, b=b, tau_u=u, tau_c=c) for a, b, u, c in grid)]

    @abstractmethod
    def _static(self) -> StoppingRule:
        """Return a rule that never stops early."""


def stop_probabilities(hazard: PerPrefix) -> tuple[PerPrefix, Float[Tensor, " B"]]:
    """Return the stop probability of every prefix, and the probability of surviving the last one.

    z_t = q_t S(t) with S(1) = 1 and S(t + 1) = S(t) - z_t.

    Source: EED main paper, eq. 21; EED supplement, eqs. 26-28.
    """
    probabilities = []
    survival = torch.ones_like(hazard[0])
    for step_hazard in hazard:
        probabilities.append(step_hazard * survival)
        survival = survival - probabilities[-1]
    return torch.stack(probabilities), survival


def add_remainder(stop_probability: PerPrefix, survival: Float[Tensor, " B"]) -> PerPrefix:
    """Add the probability of surviving the last step to that step, so that the sum over prefixes is 1."""
    return torch.cat([stop_probability[:-1], (stop_probability[-1] + survival).unsqueeze(0)])


def log_stop_probabilities(hazard_logits: PerPrefix) -> PerPrefix:
    """Return the log stop probability of every prefix, the last with the remainder, from the log-odds of the hazards.

    log z_t = log q_t + sum_{i<t} log(1 - q_i); for the last one only the sum.

    Source: EED supplement, eqs. 26-28.
    """
    survival = F.logsigmoid(-hazard_logits[:-1]).cumsum(0)
    before = torch.cat([torch.zeros_like(hazard_logits[:1]), survival])
    return before + torch.cat([F.logsigmoid(hazard_logits[:-1]), torch.zeros_like(before[:1])])


def relax_decision(answer_with: Counts, hazard_logits: PerPrefix) -> PerPrefix:
    """Return the log of a differentiable stop probability whose maximum is at the prefix that is used.

    Half of it is 1 at that prefix, the other half follows the soft hazards. A rule that compares with a threshold has
    no gradient; attacks on the rule follow this one.
    """
    hard = torch.full_like(hazard_logits, -torch.inf).scatter(0, (answer_with - 1)[None], 0.0)
    return torch.logaddexp(hard, log_stop_probabilities(hazard_logits)) - math.log(2)


def first_crossing(passed: Tensor) -> Counts:
    """Return the first of m steps at which an image passed (m, B), counted from 1; m where none did."""
    steps = torch.arange(1, len(passed) + 1, device=passed.device)[:, None]
    crossing: Counts = torch.where(passed, steps, len(passed)).amin(0)
    return crossing


def quantiles(values: Tensor, levels: Tensor) -> list[float]:
    """Return the distinct quantiles of all values, ascending; an empty list without values."""
    return sorted(set(values.flatten().quantile(levels.to(values.dtype)).tolist())) if values.numel() else []
