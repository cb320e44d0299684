"""Run members one after the other, and only on the images still undecided."""

import torch

from sparsemble.core.interfaces import Combiner, DynamicOutput, Ensemble, StoppingRule
from sparsemble.core.types import Images, MemberLogits


@torch.no_grad()
def predict_dynamic(ensemble: Ensemble, x: Images, stop: StoppingRule) -> DynamicOutput:
    """Answer each image with as few members as the rule asks for.

    Args:
        ensemble: members in running order; put it in eval mode first.
        x: (B, C, H, W) in [0, 1].
        stop: the deployed rule.

    Returns:
        Logits of the answering prefix of each image; a member costs only the images it was run on.
    """
    total = len(ensemble.members)
    undecided = torch.arange(len(x), device=x.device)
    answered_with = torch.zeros(len(x), dtype=torch.long, device=x.device)
    members_run = torch.zeros_like(answered_with)
    so_far: list[torch.Tensor] = []
    logits: torch.Tensor | None = None
    for m, member in enumerate(ensemble.members, start=1):
        so_far.append(member(x[undecided]))
        seen = torch.stack(so_far)
        decision = stop(seen, last=m == total)
        if logits is None:
            logits = torch.zeros_like(seen[0])
        done = decision.stop if m < total else torch.ones_like(decision.stop)
        for prefix in decision.answer_with[done].unique().tolist():
            rows = done & (decision.answer_with == prefix)
            logits[undecided[rows]] = ensemble.combine(seen[:prefix, rows])
        answered_with[undecided[done]] = decision.answer_with[done]
        members_run[undecided[done]] = m
        undecided = undecided[~done]
        so_far = [one[~done] for one in so_far]
        if not len(undecided):
            break
    assert logits is not None
    return DynamicOutput(logits, answered_with, members_run)


@torch.no_grad()
def answer_dynamic(member_logits: MemberLogits, combine: Combiner, stop: StoppingRule) -> DynamicOutput:
    """Answer as `predict_dynamic` would, from stored logits of all members (M, B, K)."""
    total, images, _ = member_logits.shape
    answered_with = torch.zeros(images, dtype=torch.long, device=member_logits.device)
    members_run = torch.full_like(answered_with, total)
    logits = torch.zeros_like(member_logits[0])
    for m in range(1, total + 1):
        decision = stop(member_logits[:m], last=m == total)
        done = (answered_with == 0) & (decision.stop | (m == total))
        answered_with = torch.where(done, decision.answer_with, answered_with)
        members_run = torch.where(done, m, members_run)
    for prefix in range(1, total + 1):
        rows = answered_with == prefix
        logits[rows] = combine(member_logits[:prefix, rows])
    return DynamicOutput(logits, answered_with, members_run)
