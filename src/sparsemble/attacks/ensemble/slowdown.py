"""Raise the number of members that the ensemble runs (the aim of DeepSloth, Hong et al. 2021)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator

from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.ranking import log_stop_probability, squash
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.attacks.pga import Evaluation, Progress, projected_gradient_ascent, random_starts
from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.interfaces import Combiner, Ensemble, StoppingRule
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, MemberLogits, PerImage


@final
@ensemble_attacks.register("slowdown")
@dataclass(frozen=True, kw_only=True)
class Slowdown(EnsembleAttack):
    """Raises the expected number of members, and returns the point at which the deployed rule runs the most.

    The steps maximise the log of the expected number of members after the first under the rule's stop probability,
    plus `doubt` times the doubt of the shorter prefixes (minus the difference of their two largest logits), which has
    a gradient where the stop probability has none. With `keep_label` a point counts only where the deployed prediction
    is correct, and the clean image may be that point; an image that is misclassified on the whole path is attacked
    without this condition.

    Source: the aim of Hong et al. 2021 (DeepSloth). Departs: our own loss, since a stopping rule here need not
    compare confidence with a threshold.
    """

    aims_at_cost: ClassVar[bool] = True
    keep_label: bool = False
    """Whether the deployed prediction must stay correct, so that errors do not reveal the attack."""
    doubt: float = 1.0
    """Weight of the doubt of the shorter prefixes, >= 0."""
    safety: float = 0.5
    """With `keep_label`: lead of the true class, in nats, below which the steps raise it again, > 0."""
    steps: int = 50
    """Gradient steps from each start, >= 1."""
    step_size: float = 0.1
    """Length of a step in units of eps, > 0."""
    restarts: int = 3
    """Starts, >= 1: the clean image first, then random ones."""

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, restarts=self.restarts)
        check_at_least(0, doubt=self.doubt)
        check_above_zero(step_size=self.step_size, safety=self.safety)
        self._set_label(f"slowdown{self.steps}" + ("-keep_label" if self.keep_label else ""))

    def perturb(
        self, ensemble: Ensemble, rule: StoppingRule, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Maximise the number of members."""
        total = len(ensemble.members)

        def objective(images: Images, progress: Progress) -> Evaluation:
            labels = y[progress.rows]
            member_logits = ensemble.member_logits(images)
            loss = _further_members(member_logits, rule, ensemble.combiner) + self.doubt * _doubt(
                member_logits, ensemble.combiner
            )
            output = decide_from_logits(member_logits, ensemble.combiner, rule)
            score = output.members_run + squash(loss.detach()) / 2
            if self.keep_label:
                lead = -margin_of(output.logits, labels)
                loss = torch.where(lead < self.safety, lead, loss)
                score = score - (total + 1) * (output.logits.argmax(1) != labels)
            return Evaluation(loss, score >= total - 0.5, score)

        best, starts = BestPoints.of_clean(x), random_starts(x, threat, self.restarts, rng, first=x)
        return projected_gradient_ascent(
            objective, best, x, threat, steps=self.steps, step_size=self.step_size, starts=starts
        ).images


def _further_members(member_logits: MemberLogits, rule: StoppingRule, combiner: Combiner) -> PerImage:
    """Return the log of the expected number of members after the first."""
    later = torch.arange(1, len(member_logits), device=member_logits.device).log()
    if not len(later):
        return torch.zeros_like(member_logits[0, :, 0])
    return (log_stop_probability(member_logits, rule, combiner)[1:] + later.unsqueeze(1)).logsumexp(0)


def _doubt(member_logits: MemberLogits, combiner: Combiner) -> PerImage:
    """Return the second largest logit minus the largest, averaged over the shorter prefixes; at most 0."""
    shorter = range(1, max(len(member_logits), 2))
    best = torch.stack([combiner(member_logits[:m]).topk(2, dim=1).values for m in shorter])
    return (best[..., 1] - best[..., 0]).mean(0)
