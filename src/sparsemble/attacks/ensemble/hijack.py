"""Make the rule stop early on a wrong label."""

import itertools
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.ranking import BROKEN, damage, log_stop_probability
from sparsemble.attacks.pga import At, Value, check_ascent, climb
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels

EARLY = 2.0
"""What an early stop adds to the rank of a wrong answer."""


@final
@ensemble_attacks.register("hijack")
@dataclass(frozen=True, kw_only=True)
class Hijack(EnsembleAttack):
    """Pushes, for each prefix shorter than the ensemble, a wrong label to the top of it and the rule to stop there.

    One ascent for each prefix and each of its likeliest wrong labels. The loss is the label's lead over the true class
    at that prefix plus, once it leads, the log mass of stopping there; until then whatever makes the rule sure makes it
    sure of the true class. Keeps any point where the deployed decision is wrong, those that stop early first.
    """

    targets: int = 2
    """Wrong labels tried at each prefix, the likeliest on the clean image first, >= 1."""
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
        """Ascend once for each prefix and wrong label."""
        total = len(ensemble.members)
        aims = self._aims(ensemble, x, y)

        def value(images: Images, at: At) -> Value:
            length, wanted = aims[at.start]
            labels, target = y[at.rows, None], wanted[at.rows, None]
            member_logits = ensemble.member_logits(images)
            prefix = ensemble.combiner(member_logits[:length])
            ahead = (prefix.gather(1, target) - prefix.gather(1, labels))[:, 0]
            stops_here = log_stop_probability(member_logits, rule)[length - 1]
            loss = ahead + torch.where(ahead > 0, stops_here, 0.0)
            output = decide_from_logits(member_logits.detach(), ensemble.combiner, rule)
            harm = damage(output.logits, labels[:, 0])
            early = (harm >= BROKEN) & (output.members_run < total)
            return Value(loss, harm + EARLY * early)

        enough = BROKEN + EARLY * (total > 1)
        return climb(
            value,
            x,
            threat,
            steps=self.steps,
            step_size=self.step_size,
            restarts=len(aims),
            rng=rng,
            start=x,
            enough=enough,
        )

    def _aims(self, ensemble: Ensemble, x: Images, y: Labels) -> list[tuple[int, Tensor]]:
        """Return a prefix and a wrong label of each image (B) for each ascent."""
        with torch.no_grad():
            member_logits = ensemble.member_logits(x)
            lengths = range(1, max(len(member_logits), 2))
            aims = []
            for length in lengths:
                wrong = ensemble.combiner(member_logits[:length]).scatter(1, y[:, None], -float("inf"))
                likeliest = wrong.topk(min(self.targets, wrong.shape[1] - 1), dim=1).indices
                aims.append([(length, target) for target in likeliest.unbind(1)])
        return list(itertools.chain(*aims))
