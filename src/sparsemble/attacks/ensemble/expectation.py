"""The expected answer over all stopping times."""

from dataclasses import dataclass
from typing import final

import torch

from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.types import Classifier, Images, Logits

SMALLEST = 1e-12


@final
@surrogates.register("expectation")
@dataclass(frozen=True, kw_only=True)
class Expectation(Surrogate):
    """Log of the prefixes' probabilities averaged with the rule's mass (method.md 2.7, last point).

    The mass is differentiable, so an attack can push an image towards stopping early as well as across a border.
    """

    @property
    def label(self) -> str:
        """Name in results."""
        return "expectation"

    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the expected answer."""

        def classify(x: Images) -> Logits:
            member_logits = ensemble.member_logits(x)
            prefixes = [ensemble.combiner(member_logits[:m]) for m in range(1, len(member_logits) + 1)]
            log_answers = torch.stack(prefixes).log_softmax(-1)
            log_stop_probability = rule.stop_probability(member_logits).clamp_min(SMALLEST).log()
            return torch.logsumexp(log_answers + log_stop_probability.unsqueeze(-1), dim=0)

        return classify
