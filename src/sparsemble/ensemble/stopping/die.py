"""DIE: EED's stopping rule, in its causal form (method.md 2.7)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Decision, StoppingRule, stopping_rules
from sparsemble.core.types import MemberLogits
from sparsemble.ensemble.checked import check_finite, check_not_negative
from sparsemble.ensemble.hazard import PerPrefix, hazard_settings, hazards, masses, whole

NEVER = 2.0
"""A squared confidence that no image reaches."""


@final
@stopping_rules.register("die")
@dataclass(frozen=True, kw_only=True)
class DIE(StoppingRule):
    """Stops when no later step can have a larger stopping probability; the step with the largest answers.

    Hazard q_t = sigmoid(-a (U_t - tau_u) + b (C_t - tau_c)), without the U term at t = 1, where U_t is the KL
    divergence (nats) between the averages over t and t - 1 members and C_t the square of the highest average
    probability. Mass z_t = q_t S(t), S(t + 1) = S(t) - z_t; the last step takes the rest.

    Source: EED main paper, eqs. 20-22, supplement, eqs. 26-31, corrected by method.md 2.7 (E-15 to E-20): as printed
    the rule always stops after one member.
    """

    version: ClassVar[int] = 2

    a: float = 8.0
    """Weight of the change U_t, > 0."""
    b: float = 8.0
    """Weight of the confidence C_t, > 0."""
    tau_u: float = 0.05
    """Change at which the hazard is balanced, in nats."""
    tau_c: float = 0.5
    """Squared confidence at which the hazard is balanced, in [0, 1]; well above 1 it never stops early."""

    def __post_init__(self) -> None:
        if not (self.a > 0 and self.b > 0):
            raise InputError(f"a = {self.a:g} and b = {self.b:g} must be above 0; otherwise doubt would stop early")
        check_finite(a=self.a, b=self.b, tau_u=self.tau_u)
        check_not_negative(tau_c=self.tau_c)

    def __call__(self, member_logits: MemberLogits, *, last: bool) -> Decision:
        """Decide after m members; exact: all later mass sums to S(m + 1), so it cannot exceed the best so far."""
        stop_probability, rest = masses(self.hazards(member_logits))
        if last:
            stop_probability, rest = whole(stop_probability, rest), torch.zeros_like(rest)
        best, where = stop_probability.max(0)
        return Decision(stop=best >= rest, answer_with=where + 1)

    def stop_probability(self, member_logits: MemberLogits) -> PerPrefix:
        """Return z_1..z_M, the last one with the rest."""
        return whole(*masses(self.hazards(member_logits)))

    def candidates(self, member_logits: MemberLogits) -> Iterable[StoppingRule]:
        """Try weights of each quantity, with thresholds at quantiles of what was seen on held-out images.

        The second candidate never stops early, so that calibration can always fall back to the static ensemble.
        """
        static = DIE(a=8.0, b=128.0, tau_u=0.0, tau_c=NEVER)
        settings = hazard_settings(member_logits, self.tau_u)
        return [self, static, *(DIE(a=a, b=b, tau_u=u, tau_c=c) for a, b, u, c in settings)]

    def hazards(self, member_logits: MemberLogits) -> PerPrefix:
        """Return q_1..q_M."""
        return hazards(member_logits, a=self.a, b=self.b, tau_u=self.tau_u, tau_c=self.tau_c)
