"""Check that a written format predicts as its reference does: logits, labels, and where the ensemble stops."""

import torch
from torch import Generator, Tensor

from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import RunError
from sparsemble.core.interfaces import Combiner, StoppingRule
from sparsemble.core.results import FormatAgreement
from sparsemble.core.same_outputs import TOLERANCE, relative_difference
from sparsemble.core.types import Flags, MemberLogits

EIGHT_BITS = 0.01
"""Like `TOLERANCE`, of logits in 8-bit arithmetic: where the layer on the image, in float32, is rounded otherwise, a
result may move by a step and all that follows with it (by up to 0.006 where images were changed by a millionth)."""
DRAWS = 8
"""Random perturbations of the reference's logits by the tolerance, to find images whose decision depends on less."""


def check_logits(reference: Tensor, other: Tensor, name: str, reference_name: str) -> float:
    """Return the relative difference of two tensors of logits.

    Args:
        reference: correct logits.
        other: logits of the same shape, to be checked.
        name: of what computed `other`, for the error message.
        reference_name: of what computed `reference`, for the error message.

    Raises:
        RunError: the difference is larger than the tolerance, or not a number.
    """
    difference = relative_difference(reference, other)
    if not difference <= TOLERANCE:
        raise RunError(
            f"{name} differs from {reference_name}: logits by {difference:.2g} (allowed {TOLERANCE:g}); "
            "nothing was exported"
        )
    return difference


def check_agreement(
    reference: MemberLogits,
    other: MemberLogits,
    combiner: Combiner,
    rule: StoppingRule,
    *,
    rng: Generator,
    tolerance: float = TOLERANCE,
) -> FormatAgreement:
    """Compare the logits of all members, and the labels and decisions of the ensemble.

    Args:
        reference: (M, B, K) correct logits.
        other: (M, B, K) logits of the written format.
        combiner: of the ensemble.
        rule: its stopping rule.
        rng: draws the perturbations.
        tolerance: of logits, relative to the largest where that is above 1.

    Raises:
        RunError: a logit differs by more than the tolerance, or a label or decision differs that does not depend on
            less than the tolerance.
    """
    scale = max(1.0, float(reference.abs().max())) if reference.numel() else 1.0
    logits = relative_difference(reference, other)
    labels, decisions = _differences(reference, other, combiner, rule)
    near = torch.zeros_like(labels)
    for _ in range(DRAWS):
        noise = torch.rand(reference.shape, generator=rng, device=reference.device, dtype=reference.dtype)
        perturbed = reference + (2 * noise - 1) * tolerance * scale
        near |= torch.stack(_differences(reference, perturbed, combiner, rule)).any(0)
    result = FormatAgreement(
        images=reference.shape[1],
        logits=logits,
        labels=int(labels.sum()),
        decisions=int(decisions.sum()),
        near=int(near.sum()),
    )
    unexplained = int(((labels | decisions) & ~near).sum())
    if not logits <= tolerance or unexplained:
        raise RunError(
            f"the exported ensemble differs from its reference: logits by {logits:.2g} (allowed {tolerance:g}), label "
            f"or decision of {unexplained} of {result.images} images by more than rounding"
        )
    return result


def _differences(
    reference: MemberLogits, other: MemberLogits, combiner: Combiner, rule: StoppingRule
) -> tuple[Flags, Flags]:
    """Return which images get another label, and which another decision."""
    first, second = (decide_from_logits(logits, combiner, rule) for logits in (reference, other))
    labels = first.logits.argmax(1) != second.logits.argmax(1)
    members_run = first.members_run != second.members_run
    return labels, members_run | (first.answered_with != second.answered_with)
