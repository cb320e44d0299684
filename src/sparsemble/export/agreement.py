"""Whether a format answers as its reference does: logits, labels, and when the ensemble stops."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import RunError
from sparsemble.core.interfaces import Combiner, StoppingRule
from sparsemble.core.types import Flags, MemberLogits

TOLERANCE = 1e-4
"""Of logits, relative to the largest where that is above 1."""
DRAWS = 8
"""Perturbations of the reference's logits by the tolerance, to find images whose answer hangs on less."""


@final
@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a format differs from its reference on some images."""

    images: int
    logits: float
    """Largest difference of a member's logit, relative to the largest logit where that is above 1."""
    labels: int
    """Images with another label."""
    decisions: int
    """Images with another number of members run, or another prefix that answers."""
    near: int
    """Images whose label or decision in the reference hangs on less than the tolerance; only these may differ."""


def difference(reference: Tensor, found: Tensor) -> float:
    """Return the largest difference, relative to the largest number of the reference where that is above 1."""
    if not reference.numel():
        return 0.0
    return float((reference - found).abs().max()) / max(1.0, float(reference.abs().max()))


def held_to(reference: Tensor, found: Tensor, what: str) -> float:
    """Return the difference.

    Args:
        reference: what is right.
        found: what another way of computing it gives.
        what: is compared, for the error.

    Raises:
        RunError: it is larger than the tolerance, or not a number.
    """
    apart = difference(reference, found)
    if not apart <= TOLERANCE:
        raise RunError(f"{what}: logits differ by {apart:.2g} (allowed {TOLERANCE:g}); nothing was exported")
    return apart


def agreement(
    reference: MemberLogits, found: MemberLogits, combiner: Combiner, rule: StoppingRule, *, rng: Generator
) -> Agreement:
    """Compare the logits of all members, and what the ensemble makes of them.

    Raises:
        RunError: a difference that is too large.
    """
    scale = max(1.0, float(reference.abs().max())) if reference.numel() else 1.0
    logits = difference(reference, found)
    labels, decisions = _differ(reference, found, combiner, rule)
    near = torch.zeros_like(labels)
    for _ in range(DRAWS):
        noise = torch.rand(reference.shape, generator=rng, device=reference.device, dtype=reference.dtype)
        moved = reference + (2 * noise - 1) * TOLERANCE * scale
        near |= torch.stack(_differ(reference, moved, combiner, rule)).any(0)
    result = Agreement(
        images=reference.shape[1],
        logits=logits,
        labels=int(labels.sum()),
        decisions=int(decisions.sum()),
        near=int(near.sum()),
    )
    unexplained = int(((labels | decisions) & ~near).sum())
    if not logits <= TOLERANCE or unexplained:
        raise RunError(
            f"the exported ensemble differs from its reference: logits by {logits:.2g} (allowed {TOLERANCE:g}), label or "
            f"decision of {unexplained} of {result.images} images by more than rounding"
        )
    return result


def _differ(one: MemberLogits, other: MemberLogits, combiner: Combiner, rule: StoppingRule) -> tuple[Flags, Flags]:
    """Return which images get another label, and which another decision."""
    first, second = (decide_from_logits(logits, combiner, rule) for logits in (one, other))
    labels = first.logits.argmax(1) != second.logits.argmax(1)
    ran = first.members_run != second.members_run
    return labels, ran | (first.answered_with != second.answered_with)
