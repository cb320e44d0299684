"""One member after the other."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.ranking import BROKEN, damage, lead
from sparsemble.attacks.pga import At, Value, check_ascent, climb
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels


@final
@ensemble_attacks.register("sequential")
@dataclass(frozen=True, kw_only=True)
class Sequential(EnsembleAttack):
    """Attacks the members in turn, each from where the one before left the image.

    Climbs the member's own margin; keeps the point that is worst for the deployed decision, whichever member was
    attacked there. Source: Tramer et al. 2020, on attacking the parts of an ensemble one at a time.
    """

    steps: int = 20
    """Gradient steps on each member, >= 1."""
    rounds: int = 2
    """How often the whole order is gone through, >= 1; a second round sees what the first undid."""
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
        """Go round the members."""
        total = len(ensemble.members)

        def value(images: Images, at: At) -> Value:
            turn = at.step // self.steps % total
            logits = []
            for i, member in enumerate(ensemble.members):
                with torch.set_grad_enabled(i == turn):
                    logits.append(member(images if i == turn else images.detach()))
            labels = y[at.rows]
            answer = decide_from_logits(torch.stack(logits).detach(), ensemble.combiner, rule).logits
            return Value(loss=-lead(logits[turn], labels), rank=damage(answer, labels))

        steps = self.steps * total * self.rounds
        return climb(
            value, x, threat, steps=steps, step_size=self.step_size, restarts=self.restarts, rng=rng, enough=BROKEN
        )
