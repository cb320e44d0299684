"""Set a stopping rule on stored logits of held-out images; attacks nothing itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, StoppingRule
from sparsemble.core.types import Flags, Labels, MemberLogits
from sparsemble.ensemble.dynamic import answer_dynamic


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A stopping rule and what it did on the calibration images."""

    stop: StoppingRule
    tried: int
    """Settings compared."""
    images: int
    allowed: int
    """Images the rule may lose against the static team, clean and in the worst case."""
    clean: float
    worst_case: float
    static_clean: float
    static_worst_case: float
    members_run: float
    """Mean on clean images."""


def calibrate(
    start: StoppingRule,
    clean: MemberLogits,
    adversarial: Sequence[MemberLogits],
    y: Labels,
    combine: Combiner,
    max_accuracy_drop: float,
) -> Calibrated:
    """Choose the settings that run the fewest members on clean images without losing accuracy.

    An adversarial image set counts as a whole: an image is right in the worst case if it is right in all sets.

    Args:
        start: the rule; its `candidates` are compared.
        clean: (M, B, K) logits of clean calibration images, members in running order.
        adversarial: the same for each set of adversarial images.
        y: (B) true classes.
        combine: the team's combiner.
        max_accuracy_drop: allowed loss against the static team, in [0, 1]; never finer than one image.

    Raises:
        InputError: fewer than two images or only one class.
    """
    if len(y) < 2 or len(y.unique()) < 2:
        raise InputError(f"calibration needs images of at least two classes, got {len(y)} images")
    sets = [clean, *adversarial]
    allowed = max(1, int(max_accuracy_drop * len(y)))
    static_clean, static_worst = _right([combine(logits).argmax(1) for logits in sets], y)
    best: tuple[tuple[float, ...], StoppingRule, float] | None = None
    tried = 0
    for rule in start.candidates(clean):
        outputs = [answer_dynamic(logits, combine, rule) for logits in sets]
        right_clean, right_worst = _right([output.logits.argmax(1) for output in outputs], y)
        lost = max(int(static_clean.sum() - right_clean.sum()), int(static_worst.sum() - right_worst.sum()))
        run = float(outputs[0].members_run.float().mean())
        rank = (float(max(lost - allowed, 0)), run, float(lost))
        if best is None or rank < best[0]:
            best = (rank, rule, run)
        tried += 1
    assert best is not None
    outputs = [answer_dynamic(logits, combine, best[1]) for logits in sets]
    right_clean, right_worst = _right([output.logits.argmax(1) for output in outputs], y)
    return Calibrated(
        stop=best[1],
        tried=tried,
        images=len(y),
        allowed=allowed,
        clean=float(right_clean.float().mean()),
        worst_case=float(right_worst.float().mean()),
        static_clean=float(static_clean.float().mean()),
        static_worst_case=float(static_worst.float().mean()),
        members_run=best[2],
    )


def _right(answers: Sequence[torch.Tensor], y: Labels) -> tuple[Flags, Flags]:
    """Return which clean images, and which images in all sets, are answered rightly."""
    right = torch.stack([answer == y for answer in answers])
    return right[0], right.all(0)
