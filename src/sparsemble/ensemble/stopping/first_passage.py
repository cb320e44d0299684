"""First passage: stop where the hazard first reaches 1/2."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Decision, stopping_rules
from sparsemble.core.types import MemberLogits
from sparsemble.ensemble.prefix_statistics import UNREACHABLE, HazardRule, PerPrefix, first_crossing, relax_decision


@final
@stopping_rules.register("first_passage")
@dataclass(frozen=True, kw_only=True)
class FirstPassage(HazardRule):
    """Stops at the first step whose hazard is at least 1/2; all members that ran are used.

    The hazard is that of DIE: sigmoid(-a (U_t - tau_u) + b (C_t - tau_c)).

    Source: IRENE, from which EED takes its stopping, stops at a first crossing; hazard of EED supplement, eqs. 29-31.
    """

    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not (self.a >= 0 and self.b > 0):
            raise InputError(
                f"a = {self.a:g} must be 0 or more and b = {self.b:g} above 0; otherwise change would stop early"
            )
        super().__post_init__()

    def __call__(self, member_logits: MemberLogits, combiner: Combiner, *, last: bool) -> Decision:
        """Decide after m members, from their logits (m, B, K)."""
        passed = self.hazards(member_logits, combiner) >= 0.5
        return Decision(stop=passed.any(0) | last, answer_with=first_crossing(passed))

    def log_stop_probability(self, member_logits: MemberLogits, combiner: Combiner) -> PerPrefix:
        """Return the log of 1/2 at the prefix that is used plus 1/2 of the stop probability of the hazards, (M, B)."""
        logits = self.hazard_logits(member_logits, combiner)
        return relax_decision(first_crossing(torch.sigmoid(logits) >= 0.5), logits)

    def _static(self) -> "FirstPassage":
        return FirstPassage(a=0.0, b=8.0, tau_u=0.0, tau_c=UNREACHABLE)
