"""Dynamic inference: members run one after the other, each only on the images still undecided."""

import torch

from sparsemble.core.dynamic import decide
from sparsemble.core.interfaces import DynamicOutput, Ensemble, StoppingRule
from sparsemble.core.types import Images


@torch.no_grad()
def predict_dynamic(ensemble: Ensemble, x: Images, rule: StoppingRule) -> DynamicOutput:
    """Predict each image with as few members as the stopping rule allows.

    For stored logits of all members use `core.dynamic.decide_from_logits`.

    Args:
        ensemble: members in running order, in eval mode.
        x: images (B, C, H, W) in [0, 1].
        rule: the stopping rule; it decides for each image on its own.

    Returns:
        Logits (B, K) of the prefix that is used, its length, and the number of members run, both (B) in 1..M.

    Raises:
        InputError: members return different numbers of classes.

    Source: EED main paper, eqs. 20-22.
    """
    return decide(ensemble, x, rule)
