"""Make the stopping rule stop early with a wrong prediction."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from sparsemble.attacks.attack import likeliest_wrong
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.ranking import MISCLASSIFIED, log_stop_probability, rank
from sparsemble.attacks.pga import Evaluation, Progress, check_ascent, projected_gradient_ascent, random_starts
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import InputError
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
    label: str = ""
    """Name in results; empty: the component's name and steps."""

    def __post_init__(self) -> None:
        check_ascent(steps=self.steps, step_size=self.step_size)
        if self.targets < 1:
            raise InputError(f"targets = {self.targets} must be 1 or more")
        if not self.label:
            object.__setattr__(self, "label", f"hijack{self.steps}")

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
            stops_here = log_stop_probability(member_logits, rule)[length - 1]
            loss = ahead + torch.where(ahead > 0, stops_here, 0.0)
            output = decide_from_logits(member_logits.detach(), ensemble.combiner, rule)
            score = rank(output.logits, labels)
            early = (score >= MISCLASSIFIED) & (output.members_run < total)
            score = score + EARLY * early
            return Evaluation(loss, score >= MISCLASSIFIED + EARLY * (total > 1), score)

        return projected_gradient_ascent(
            objective,
            BestPoints.of_clean(x),
            x,
            threat,
            steps=self.steps,
            step_size=self.step_size,
            starts=random_starts(x, threat, len(targets), rng, first=x),
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
