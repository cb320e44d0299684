"""First passage: stop where the hazard first reaches 1/2."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Decision, StoppingRule, stopping_rules
from sparsemble.core.types import MemberLogits
from sparsemble.ensemble.argument_checks import check_finite, check_not_negative
from sparsemble.ensemble.prefix_statistics import (
    UNREACHABLE,
    PerPrefix,
    first_crossing,
    hazard_grid,
    hazards,
    relax_decision,
)


@final
@stopping_rules.register("first_passage")
@dataclass(frozen=True, kw_only=True)
class FirstPassage(StoppingRule):
    """Stops at the first step whose hazard is at least 1/2; all members that ran are used.

    The hazard is that of DIE: sigmoid(-a (U_t - tau_u) + b (C_t - tau_c)).

    Source: IRENE, from which EED takes its stopping, stops at a first crossing; hazard of EED supplement, eqs. 29-31.
    """

    version: ClassVar[int] = 2

    a: float = 8.0
    """Weight of the change U_t, >= 0."""
    b: float = 8.0
    """Weight of the confidence C_t, > 0."""
    tau_u: float = 0.05
    """Change at which the hazard is balanced, in nats."""
    tau_c: float = 0.5
    """Squared confidence at which the hazard is balanced, in [0, 1]; well above 1 it never stops early."""

    def __post_init__(self) -> None:
        if not (self.a >= 0 and self.b > 0):
            raise InputError(
                f"a = {self.a:g} must be 0 or more and b = {self.b:g} above 0; otherwise change would stop early"
            )
        check_finite(a=self.a, b=self.b, tau_u=self.tau_u)
        check_not_negative(tau_c=self.tau_c)

    def __call__(self, member_logits: MemberLogits, *, last: bool) -> Decision:
        """Decide after m members, from their logits (m, B, K)."""
        passed = hazards(member_logits, **vars(self)) >= 0.5
        return Decision(stop=passed.any(0) | last, answer_with=first_crossing(passed))

    def stop_probability(self, member_logits: MemberLogits) -> PerPrefix:
        """Return 1/2 at the prefix that is used plus 1/2 of the stop probability of the hazards, (M, B)."""
        hazard = hazards(member_logits, **vars(self))
        return relax_decision(first_crossing(hazard >= 0.5), hazard)

    def candidates(self, member_logits: MemberLogits) -> Iterable[StoppingRule]:
        """Return this rule, one that never stops early, and the grid of weights and thresholds of DIE."""
        static = FirstPassage(a=0.0, b=8.0, tau_u=0.0, tau_c=UNREACHABLE)
        settings = hazard_grid(member_logits, self.tau_u)
        return [self, static, *(FirstPassage(a=a, b=b, tau_u=u, tau_c=c) for a, b, u, c in settings)]
