"""How badly a deployed ensemble answers, and how likely each prefix is to answer."""

from jaxtyping import Float
from torch import Tensor

from sparsemble.attacks.pga import squash
from sparsemble.core.interfaces import StoppingRule
from sparsemble.core.types import Labels, Logits, MemberLogits, PerImage

SMALLEST = 1e-300
BROKEN = 2.0
"""`damage` of a wrong answer is this or more."""


def lead(logits: Logits, y: Labels) -> PerImage:
    """Return how far the true class leads the best wrong one; below 0 where the image is misclassified."""
    wrong = logits.scatter(1, y[:, None], -float("inf")).amax(1)
    return logits.gather(1, y[:, None])[:, 0] - wrong


def damage(logits: Logits, y: Labels) -> PerImage:
    """Order answers by harm: 2 to 3 where wrong, -1 to 0 where right, higher where further from being right."""
    return 2 * (logits.argmax(1) != y) + squash(-lead(logits, y))


def log_stop_probability(member_logits: MemberLogits, rule: StoppingRule) -> Float[Tensor, "M B"]:
    """Return the log of the rule's mass, in double precision.

    In single precision the mass of a sure image rounds to 0 or 1 and takes its gradient with it: the rule would look
    robust because the attacker is blind.
    """
    return rule.stop_probability(member_logits.double()).clamp_min(SMALLEST).log()
