"""Attack one member after the other."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.ranking import MISCLASSIFIED, rank
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.attacks.pga import Evaluation, Progress, check_ascent, projected_gradient_ascent, random_starts
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import InputError
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
    label: str = ""
    """Name in results; empty: the component's name and steps."""

    def __post_init__(self) -> None:
        check_ascent(steps=self.steps, step_size=self.step_size, restarts=self.restarts)
        if self.rounds < 1:
            raise InputError(f"rounds = {self.rounds} must be 1 or more")
        if not self.label:
            object.__setattr__(self, "label", f"sequential{self.steps}x{self.rounds}")

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

        return projected_gradient_ascent(
            objective,
            BestPoints.of_clean(x),
            x,
            threat,
            steps=self.steps * len(members) * self.rounds,
            step_size=self.step_size,
            starts=random_starts(x, threat, self.restarts, rng),
        ).images
