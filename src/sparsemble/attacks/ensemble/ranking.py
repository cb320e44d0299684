"""Scores of predictions of a deployed ensemble, and the probability of stopping after each member."""

from jaxtyping import Float
from torch import Tensor

from sparsemble.attacks.losses.margin import margin_of
from sparsemble.core.interfaces import Combiner, StoppingRule
from sparsemble.core.types import Labels, Logits, MemberLogits, PerImage

LOWEST = -1e6
"""Log of a probability that counts as 0, so that no sum is infinite."""
MISCLASSIFIED = 2.0
"""The `rank` of a wrong prediction is this or more."""


def rank(logits: Logits, y: Labels) -> PerImage:
    """Order predictions, worst last: -1 to 0 where correct, 2 to 3 where wrong, higher for a larger margin."""
    return 2 * (logits.argmax(1) != y) + squash(margin_of(logits, y))


def squash(value: PerImage) -> PerImage:
    """Map numbers into (-1, 1) in order, so that they can be added to a rank of whole numbers."""
    return value / (1 + value.abs())


def log_stop_probability(member_logits: MemberLogits, rule: StoppingRule, combiner: Combiner) -> Float[Tensor, "M B"]:
    """Return the log of the rule's stop probability, finite, computed in double precision.

    In single precision the probabilities of a confident image round to 0 or 1 and their gradient vanishes: the rule
    would look robust only because the attack has no gradient.

    Args:
        member_logits: (M, B, K), members in running order.
        rule: decides when to stop.
        combiner: of the ensemble.
    """
    return rule.log_stop_probability(member_logits.double(), combiner).clamp_min(LOWEST).to(member_logits.dtype)
