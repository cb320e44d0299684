"""First passage: stop where the stopping probability first reaches a half."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Decision, StoppingRule, stopping_rules
from sparsemble.core.types import Counts, MemberLogits
from sparsemble.ensemble.checked import check_finite, check_not_negative
from sparsemble.ensemble.hazard import PerPrefix, first, hazard_settings, hazards, leaning

NEVER = 2.0


@final
@stopping_rules.register("first_passage")
@dataclass(frozen=True, kw_only=True)
class FirstPassage(StoppingRule):
    """Stops at the first step whose hazard is a half or more, and averages all members that ran.

    The hazard is DIE's: sigmoid(-a (U_t - tau_u) + b (C_t - tau_c)).

    Source: IRENE, the method that EED takes its stopping from, stops at a first crossing (method.md 2.7).
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
            raise InputError(f"a = {self.a:g} must be 0 or more and b = {self.b:g} above 0; doubt would stop early")
        check_finite(a=self.a, b=self.b, tau_u=self.tau_u)
        check_not_negative(tau_c=self.tau_c)

    def __call__(self, member_logits: MemberLogits, *, last: bool) -> Decision:
        """Decide after m members."""
        passed = self._hazards(member_logits) >= 0.5
        return Decision(stop=passed.any(0) | last, answer_with=first(passed))

    def stop_probability(self, member_logits: MemberLogits) -> PerPrefix:
        """Return a half at the prefix that answers, and a half by the hazards."""
        return leaning(self._answer(member_logits), self._hazards(member_logits))

    def candidates(self, member_logits: MemberLogits) -> Iterable[StoppingRule]:
        """Try weights and thresholds as DIE does; the second candidate never stops early."""
        static = FirstPassage(a=0.0, b=8.0, tau_u=0.0, tau_c=NEVER)
        settings = hazard_settings(member_logits, self.tau_u)
        return [self, static, *(FirstPassage(a=a, b=b, tau_u=u, tau_c=c) for a, b, u, c in settings)]

    def _answer(self, member_logits: MemberLogits) -> Counts:
        return first(self._hazards(member_logits) >= 0.5)

    def _hazards(self, member_logits: MemberLogits) -> torch.Tensor:
        return hazards(member_logits, a=self.a, b=self.b, tau_u=self.tau_u, tau_c=self.tau_c)
