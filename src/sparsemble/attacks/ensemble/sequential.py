"""Attack one member after the other."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.ranking import MISCLASSIFIED, rank
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.attacks.pga import Evaluation, Progress, projected_gradient_ascent, random_starts
from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels


@final
@ensemble_attacks.register("sequential")
@dataclass(frozen=True, kw_only=True)
class Sequential(EnsembleAttack):
    """Attacks the members in turn, each from the last point of the one before.

    The steps maximise the margin of one member; the point that is worst for the deployed prediction is kept, whichever
    member was attacked there. Source: Tramer et al. 2020, on attacking the parts of an ensemble one at a time.
    """

    steps: int = 20
    """Gradient steps on each member, >= 1."""
    rounds: int = 2
    """Passes through all members, >= 1; a second one can restore what later members undid."""
    step_size: float = 0.1
    """Length of a step in units of eps, > 0."""
    restarts: int = 1
    """Independent random starts, >= 1."""

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, rounds=self.rounds, restarts=self.restarts)
        check_above_zero(step_size=self.step_size)
        self._set_label(f"sequential{self.steps}x{self.rounds}")

    def perturb(
        self, ensemble: Ensemble, rule: StoppingRule, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Attack the members in turn."""
        members = ensemble.members

        def objective(images: Images, progress: Progress) -> Evaluation:
            attacked = progress.step // self.steps % len(members)
            logits = []
            for i, member in enumerate(members):
                with torch.set_grad_enabled(i == attacked):
                    logits.append(member(images if i == attacked else images.detach()))
            labels = y[progress.rows]
            output = decide_from_logits(torch.stack(logits).detach(), ensemble.combiner, rule)
            score = rank(output.logits, labels)
            return Evaluation(margin_of(logits[attacked], labels), score >= MISCLASSIFIED, score)

        steps = self.steps * len(members) * self.rounds
        best, starts = BestPoints.of_clean(x), random_starts(x, threat, self.restarts, rng)
        return projected_gradient_ascent(
            objective, best, x, threat, steps=steps, step_size=self.step_size, starts=starts
        ).images
