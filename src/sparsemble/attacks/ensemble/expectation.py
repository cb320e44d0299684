"""The expected prediction over all stopping times."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sparsemble.attacks.ensemble.ranking import log_stop_probability
from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.types import Classifier, Images, Logits


@final
@surrogates.register("expectation")
@dataclass(frozen=True, kw_only=True)
class Expectation(Surrogate):
    """Log of the prefixes' class probabilities, averaged with the rule's stop probability.

    The stop probability is differentiable, so the gradient of an attack includes the decision to stop.

    Source: ours, with the stop probability of EED main paper, eqs. 20-22.
    """

    version: ClassVar[int] = 2

    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the classifier of the expected prediction."""

        def classify(x: Images) -> Logits:
            member_logits = ensemble.member_logits(x)
            prefixes = [ensemble.combiner(member_logits[:m]) for m in range(1, len(member_logits) + 1)]
            log_probabilities = torch.stack(prefixes).log_softmax(-1)
            stop = log_stop_probability(member_logits, rule, ensemble.combiner)
            return torch.logsumexp(log_probabilities + stop.unsqueeze(-1), dim=0)

        return classify
