"""Dynamic inference: members run one after the other, each only on the images still undecided."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsemble.core.interfaces import Combiner, DynamicOutput, Ensemble, StoppingRule, stack_logits
from sparsemble.core.pass_counter import for_images
from sparsemble.core.types import Images, Logits, MemberLogits


def decide(ensemble: Ensemble, x: Images, rule: StoppingRule) -> DynamicOutput:
    """Run an ensemble with a stopping rule; gradients reach the members that answer.

    Args:
        ensemble: members in running order.
        x: images (B, C, H, W) in [0, 1].
        rule: decides for each image.
    """

    def run_member(m: int, rows: Tensor) -> Logits:
        with for_images(rows):
            logits: Logits = ensemble.members[m](x[rows])
        return logits

    return _decide(run_member, len(ensemble.members), torch.arange(len(x), device=x.device), ensemble.combiner, rule)


@torch.no_grad()
def predict_dynamic(ensemble: Ensemble, x: Images, rule: StoppingRule) -> DynamicOutput:
    """Predict each image with as few members as the stopping rule allows, without gradients.

    Args:
        ensemble: members in running order, in eval mode.
        x: images (B, C, H, W) in [0, 1].
        rule: decides for each image on its own.

    Raises:
        InputError: members return different numbers of classes.

    Source: EED main paper, eqs. 20-22.
    """
    return decide(ensemble, x, rule)


def decide_from_logits(member_logits: MemberLogits, combiner: Combiner, rule: StoppingRule) -> DynamicOutput:
    """Return what an ensemble with a stopping rule predicts, from stored logits of all members.

    Args:
        member_logits: (M, B, K), members in running order.
        combiner: combines the prefix that answers.
        rule: decides for each image.
    """
    rows = torch.arange(member_logits.shape[1], device=member_logits.device)
    return _decide(lambda m, rows: member_logits[m, rows], len(member_logits), rows, combiner, rule)


def _decide(
    run_member: Callable[[int, Tensor], Logits],
    total: int,
    undecided: Tensor,
    combiner: Combiner,
    rule: StoppingRule,
) -> DynamicOutput:
    """Run members in order; `undecided` holds the indices of the images that need a further member."""
    answered_with, members_run = torch.zeros_like(undecided), torch.zeros_like(undecided)
    so_far: list[Tensor] = []
    indices, outputs = [undecided[:0]], []
    for m in range(1, total + 1):
        so_far.append(run_member(m - 1, undecided))
        member_logits = stack_logits(so_far)
        if m == 1:
            outputs.append(combiner(member_logits[:, :0]))  # an empty batch needs an output, too
        decision = rule(member_logits.detach(), combiner, last=m == total)
        done = decision.stop if m < total else torch.ones_like(decision.stop)
        for prefix in decision.answer_with[done].unique().tolist():
            rows = done & (decision.answer_with == prefix)
            indices.append(undecided[rows])
            outputs.append(combiner(member_logits[:prefix, rows]))
        answered_with[undecided[done]] = decision.answer_with[done]
        members_run[undecided[done]] = m
        undecided = undecided[~done]
        so_far = [logits[~done] for logits in so_far]
        if not len(undecided):
            break
    return DynamicOutput(torch.cat(outputs)[torch.cat(indices).argsort()], answered_with, members_run)
