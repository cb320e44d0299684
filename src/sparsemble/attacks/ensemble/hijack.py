"""Make the stopping rule stop early with a wrong prediction."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from sparsemble.attacks.attack import likeliest_wrong
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.ranking import MISCLASSIFIED, log_stop_probability, rank
from sparsemble.attacks.pga import Evaluation, Progress, projected_gradient_ascent, random_starts
from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels

EARLY = 2.0
"""Added to the score of a wrong prediction by an early stop."""


@final
@ensemble_attacks.register("hijack")
@dataclass(frozen=True, kw_only=True)
class Hijack(EnsembleAttack):
    """Makes a shorter prefix predict a wrong class, and the stopping rule stop there.

    One ascent for each prefix shorter than the ensemble and each of its likeliest wrong classes. The loss is the
    logit of that class minus the true one at the prefix plus, once this is positive, the log of the probability of
    stopping there; before, a higher stop probability would only make the prefix more confident of the true class.
    Keeps points at which the deployed prediction is wrong, those that stop early first.
    """

    targets: int = 2
    """Wrong classes tried at each prefix, the likeliest on the clean image first, >= 1."""
    steps: int = 40
    """Gradient steps of each ascent, >= 1."""
    step_size: float = 0.1
    """Length of a step in units of eps, > 0."""

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, targets=self.targets)
        check_above_zero(step_size=self.step_size)
        self._set_label(f"hijack{self.steps}")

    def perturb(
        self, ensemble: Ensemble, rule: StoppingRule, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Run one ascent for each prefix and wrong class."""
        total = len(ensemble.members)
        targets = self._targets(ensemble, x, y)

        def objective(images: Images, progress: Progress) -> Evaluation:
            length, target = targets[progress.restart]
            labels = y[progress.rows]
            member_logits = ensemble.member_logits(images)
            prefix = ensemble.combiner(member_logits[:length])
            ahead = (prefix.gather(1, target[progress.rows, None]) - prefix.gather(1, labels[:, None]))[:, 0]
            stops_here = log_stop_probability(member_logits, rule, ensemble.combiner)[length - 1]
            loss = ahead + torch.where(ahead > 0, stops_here, 0.0)
            output = decide_from_logits(member_logits.detach(), ensemble.combiner, rule)
            score = rank(output.logits, labels)
            early = (score >= MISCLASSIFIED) & (output.members_run < total)
            score = score + EARLY * early
            return Evaluation(loss, score >= MISCLASSIFIED + EARLY * (total > 1), score)

        best, starts = BestPoints.of_clean(x), random_starts(x, threat, len(targets), rng, first=x)
        return projected_gradient_ascent(
            objective, best, x, threat, steps=self.steps, step_size=self.step_size, starts=starts
        ).images

    @torch.no_grad()
    def _targets(self, ensemble: Ensemble, x: Images, y: Labels) -> list[tuple[int, Tensor]]:
        """Return the length of a prefix and (B) wrong classes for each ascent."""
        member_logits = ensemble.member_logits(x)
        return [
            (length, target)
            for length in range(1, max(len(member_logits), 2))
            for target in likeliest_wrong(ensemble.combiner(member_logits[:length]), y, self.targets).unbind(1)
        ]
