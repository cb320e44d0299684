"""What the deployed team decides, as an attacker sees it."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sparsemble.attacks.climb import squash
from sparsemble.core.interfaces import Combiner, DynamicOutput, Ensemble, StoppingRule
from sparsemble.core.types import Images, Labels, Logits, MemberLogits, PerImage

SMALLEST = 1e-300

BROKEN = 2.0
"""`damage` of a wrong answer is this or more."""


def decide(ensemble: Ensemble, x: Images, stop: StoppingRule) -> DynamicOutput:
    """Run members one after the other, only on images still undecided; gradients reach the members that answer."""

    def ask(m: int, rows: Tensor) -> Logits:
        logits: Logits = ensemble.members[m](x[rows])
        return logits

    return _decide(ask, len(ensemble.members), torch.arange(len(x), device=x.device), ensemble.combine, stop)


def decide_known(member_logits: MemberLogits, combine: Combiner, stop: StoppingRule) -> DynamicOutput:
    """Decide from the logits of all members (M, B, K)."""
    rows = torch.arange(member_logits.shape[1], device=member_logits.device)
    return _decide(lambda m, rows: member_logits[m, rows], len(member_logits), rows, combine, stop)


def lead(logits: Logits, y: Labels) -> PerImage:
    """Return how far the true class leads the best wrong one; below 0 where the image is misclassified."""
    wrong = logits.scatter(1, y[:, None], -float("inf")).amax(1)
    return logits.gather(1, y[:, None])[:, 0] - wrong


def damage(logits: Logits, y: Labels) -> PerImage:
    """Order answers by harm: 2 to 3 where wrong, -1 to 0 where right, higher where further from being right."""
    return 2 * (logits.argmax(1) != y) + squash(-lead(logits, y))


def _decide(
    ask: Callable[[int, Tensor], Logits], total: int, undecided: Tensor, combine: Combiner, stop: StoppingRule
) -> DynamicOutput:
    answered_with, members_run = torch.zeros_like(undecided), torch.zeros_like(undecided)
    so_far: list[Tensor] = []
    places, answers = [], []
    for m in range(1, total + 1):
        so_far.append(ask(m - 1, undecided))
        seen = torch.stack(so_far)
        decision = stop(seen.detach(), last=m == total)
        done = decision.stop if m < total else torch.ones_like(decision.stop)
        for prefix in decision.answer_with[done].unique().tolist():
            rows = done & (decision.answer_with == prefix)
            places.append(undecided[rows])
            answers.append(combine(seen[:prefix, rows]))
        answered_with[undecided[done]] = decision.answer_with[done]
        members_run[undecided[done]] = m
        undecided = undecided[~done]
        so_far = [one[~done] for one in so_far]
        if not len(undecided):
            break
    return DynamicOutput(torch.cat(answers)[torch.cat(places).argsort()], answered_with, members_run)


def log_mass(member_logits: MemberLogits, stop: StoppingRule) -> Float[Tensor, "M B"]:
    """Return the log of the rule's mass, in double precision.

    In single precision the mass of a sure image rounds to 0 or 1 and takes its gradient with it: the rule would look
    robust because the attacker is blind.
    """
    return stop.mass(member_logits.double()).clamp_min(SMALLEST).log()
