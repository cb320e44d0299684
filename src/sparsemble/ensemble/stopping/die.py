"""DIE: the stopping rule of EED, in its causal form."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Decision, stopping_rules
from sparsemble.core.types import MemberLogits
from sparsemble.ensemble.prefix_statistics import (
    UNREACHABLE,
    HazardRule,
    PerPrefix,
    add_remainder,
    log_stop_probabilities,
    stop_probabilities,
)


@final
@stopping_rules.register("die")
@dataclass(frozen=True, kw_only=True)
class DIE(HazardRule):
    """Stops when no later step can have a larger stop probability; the prefix of the step with the largest one is used.

    Hazard q_t = sigmoid(-a (U_t - tau_u) + b (C_t - tau_c)), without the U term at t = 1, where U_t is the KL
    divergence (nats) between the combined probabilities of t and of t - 1 members, C_t the square of the highest one.
    Stop probability z_t = q_t S(t), S(t + 1) = S(t) - z_t; the last step takes the remainder.

    Source: EED main paper, eqs. 20-22; EED supplement, eqs. 26-31. Departs: survival is a product, each quantity has a
    threshold, change lowers the hazard, and the decision uses past members only; as printed the rule always stops after
    one member.
    """

    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not (self.a > 0 and self.b > 0):
            raise InputError(f"a = {self.a:g} and b = {self.b:g} must be above 0; otherwise change would stop early")
        super().__post_init__()

    def __call__(self, member_logits: MemberLogits, combiner: Combiner, *, last: bool) -> Decision:
        """Decide after m members, from their logits (m, B, K).

        Exact: all later stop probabilities sum to S(m + 1), so none of them can exceed the best one so far.

        Source: EED main paper, eqs. 21-22.
        """
        stop_probability, survival = stop_probabilities(self.hazards(member_logits, combiner))
        if last:
            stop_probability, survival = add_remainder(stop_probability, survival), torch.zeros_like(survival)
        best, step = stop_probability.max(0)
        return Decision(stop=best >= survival, answer_with=step + 1)

    def log_stop_probability(self, member_logits: MemberLogits, combiner: Combiner) -> PerPrefix:
        """Return log z_1..z_M (M, B), the last one with the remainder.

        Source: EED supplement, eqs. 26-28.
        """
        return log_stop_probabilities(self.hazard_logits(member_logits, combiner))

    def _static(self) -> "DIE":
        return DIE(a=8.0, b=128.0, tau_u=0.0, tau_c=UNREACHABLE)
