"""Run members one after the other, and only on the images still undecided."""

import torch

from sparsemble.core.dynamic import decide, decide_known
from sparsemble.core.interfaces import Combiner, DynamicOutput, Ensemble, StoppingRule
from sparsemble.core.types import Images, MemberLogits


@torch.no_grad()
def predict_dynamic(ensemble: Ensemble, x: Images, rule: StoppingRule) -> DynamicOutput:
    """Answer each image with as few members as the rule asks for.

    Args:
        ensemble: members in running order; put it in eval mode first.
        x: (B, C, H, W) in [0, 1].
        rule: the deployed rule.

    Returns:
        Logits of the answering prefix of each image; a member costs only the images it was run on.
    """
    return decide(ensemble, x, rule)


@torch.no_grad()
def answer_dynamic(member_logits: MemberLogits, combiner: Combiner, rule: StoppingRule) -> DynamicOutput:
    """Answer as `predict_dynamic` would, from stored logits of all members (M, B, K)."""
    return decide_known(member_logits, combiner, rule)
