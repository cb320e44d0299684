"""What a deployed ensemble decides: members one after the other, and only on the images still undecided."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsemble.core.interfaces import Combiner, DynamicOutput, Ensemble, StoppingRule, stack_logits
from sparsemble.core.pass_counter import for_images
from sparsemble.core.types import Images, Logits, MemberLogits


def decide(ensemble: Ensemble, x: Images, rule: StoppingRule) -> DynamicOutput:
    """Run members one after the other, only on images still undecided; gradients reach the members that answer."""

    def ask(m: int, rows: Tensor) -> Logits:
        with for_images(rows):
            logits: Logits = ensemble.members[m](x[rows])
        return logits

    return _decide(ask, len(ensemble.members), torch.arange(len(x), device=x.device), ensemble.combiner, rule)


def decide_from_logits(member_logits: MemberLogits, combiner: Combiner, rule: StoppingRule) -> DynamicOutput:
    """Decide from the logits of all members (M, B, K)."""
    rows = torch.arange(member_logits.shape[1], device=member_logits.device)
    return _decide(lambda m, rows: member_logits[m, rows], len(member_logits), rows, combiner, rule)


def _decide(
    ask: Callable[[int, Tensor], Logits], total: int, undecided: Tensor, combiner: Combiner, rule: StoppingRule
) -> DynamicOutput:
    answered_with, members_run = torch.zeros_like(undecided), torch.zeros_like(undecided)
    so_far: list[Tensor] = []
    places, answers = [undecided[:0]], []
    for m in range(1, total + 1):
        so_far.append(ask(m - 1, undecided))
        seen = stack_logits(so_far)
        if m == 1:
            answers.append(combiner(seen[:, :0]))  # so that a batch of no images has an answer, too
        decision = rule(seen.detach(), last=m == total)
        done = decision.stop if m < total else torch.ones_like(decision.stop)
        for prefix in decision.answer_with[done].unique().tolist():
            rows = done & (decision.answer_with == prefix)
            places.append(undecided[rows])
            answers.append(combiner(seen[:prefix, rows]))
        answered_with[undecided[done]] = decision.answer_with[done]
        members_run[undecided[done]] = m
        undecided = undecided[~done]
        so_far = [one[~done] for one in so_far]
        if not len(undecided):
            break
    return DynamicOutput(torch.cat(answers)[torch.cat(places).argsort()], answered_with, members_run)
