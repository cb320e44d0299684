"""The label and the decision to stop, as the logits of one classifier."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sparsemble.attacks.ensemble.ranking import log_stop_probability
from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.types import Classifier, Images, Logits


@final
@surrogates.register("joint_decision")
@dataclass(frozen=True, kw_only=True)
class JointDecision(Surrogate):
    """How far each class is from being the deployed prediction, by its label and by the decision to stop.

    The logit of class c is the largest over prefixes m of both(label(m, c), stop(m)): label(m, c) is the logit of c at
    prefix m minus the largest other one, stop(m) the log of the stop probability of prefix m minus the largest other
    one. The first is positive where prefix m predicts c, the second where prefix m is used; both(a, b) is what they
    lack in total, min(a, 0) + min(b, 0), or the smaller of them where they lack nothing. So only the deployed
    prediction has a positive logit. Unlike with `expectation`, misclassified therefore means misclassified by the
    deployed prediction; unlike `deployed`, it has a gradient of the decision to stop and of prefixes that are not used.

    Source: ours.
    """

    @property
    def label(self) -> str:
        """Name in results."""
        return "joint"

    def __call__(self, ensemble: Ensemble, rule: StoppingRule) -> Classifier:
        """Return the classifier of label and decision."""

        def classify(x: Images) -> Logits:
            member_logits = ensemble.member_logits(x)
            prefixes = [ensemble.combiner(member_logits[:m]) for m in range(1, len(member_logits) + 1)]
            label = _above_others(torch.stack(prefixes), dim=2)
            stop = log_stop_probability(member_logits, rule, ensemble.combiner)
            stop = _above_others(stop, dim=0).unsqueeze(-1)
            lacking = label.clamp_max(0) + stop.clamp_max(0)
            return torch.where(lacking < 0, lacking, torch.minimum(label, stop)).amax(0)

        return classify


def _above_others(values: Tensor, *, dim: int) -> Tensor:
    """Return each value minus the largest other one along a dimension; infinity where there is no other."""
    if values.shape[dim] == 1:
        return torch.full_like(values, torch.inf)
    best = values.topk(2, dim=dim)
    first, second = (best.values.narrow(dim, i, 1) for i in (0, 1))
    leading = torch.zeros_like(values, dtype=torch.bool).scatter(dim, best.indices.narrow(dim, 0, 1), True)
    return values - torch.where(leading, second, first)
