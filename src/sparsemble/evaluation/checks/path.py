"""The points that an attack evaluates, image by image: the evidence of checks 16 and 17."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.core.results import CheckResult
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, Logits
from sparsemble.evaluation.checks import skipped, verdict

LOSS = CrossEntropy()
"""What the attack maximises."""
LAST_TENTH = 0.05
"""Fraction of the whole increase of the loss that the last tenth of a path may still gain."""
SHORTEST = 10
"""Points that a path must have for its last tenth to count."""
ROUNDING = 1e-4
"""Fraction of a loss, or of 1, by which a point may seem worse when it is evaluated again."""


@final
@dataclass(frozen=True)
class Path:
    """One attack on one image that is classified correctly when clean."""

    clean: float
    """Loss at the clean image."""
    losses: tuple[float, ...]
    """Loss at each point evaluated inside the ball, in order, without the clean image."""
    succeeded: bool
    """Whether one of those points was misclassified."""
    returned: float
    """Loss at the point that was returned."""
    returned_misclassified: bool
    returned_clean: bool
    """Whether it is the clean image."""


def follow(
    attack: Attack, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
) -> list[Path]:
    """Run an attack image by image and record what it evaluates; costs the attack and 2 forward passes an image.

    Args:
        attack: the attack that is checked.
        model: the classifier that it attacks.
        x: a few images; those that are misclassified when clean are left out.
        y: their classes.
        threat: where points may lie.
        rng: draws the attack's random starts.
    """
    with torch.no_grad():
        correct = (model(x).argmax(1) == y).nonzero()[:, 0].tolist()
    return [_follow(attack, model, x[i : i + 1], y[i : i + 1], threat, rng) for i in correct]


def loss_converged(paths: Sequence[Path]) -> CheckResult:
    """Check 16: the last tenth of a path adds little to the best loss, on images that withstand it; no passes."""
    standing = [path for path in paths if not path.succeeded]
    if not paths:
        return skipped(16, "no image is classified correctly when clean, so there was nothing to follow")
    if not standing:
        return verdict(16, True, f"all of {len(paths)} images were misclassified on the path")
    if min(len(path.losses) for path in standing) < SHORTEST:
        return skipped(16, f"a path of fewer than {SHORTEST} points has no last tenth")
    shares = []
    for path in standing:
        end, before = max(path.losses), max(path.losses[: int(0.9 * len(path.losses))])
        shares.append((end - before) / max(end - path.clean, ROUNDING))
    share = sum(shares) / len(shares)
    gain = f"{100 * share:.1f} % of the increase"
    detail = f"the last tenth of the path adds {gain}, on {len(standing)} images that withstand it"
    return verdict(16, share < LAST_TENTH, detail)


def keeps_best(paths: Sequence[Path]) -> CheckResult:
    """Check 17: a misclassified point, or that of highest loss, is returned, not the clean image; no passes."""
    if not paths:
        return skipped(17, "no image is classified correctly when clean, so there was nothing to follow")
    silent = sum(path.succeeded and not path.returned_misclassified for path in paths)
    clean = sum(path.returned_clean for path in paths)
    worse = sum(not path.succeeded and _is_worse(path) for path in paths)
    detail = (
        f"of {len(paths)} images, {silent} were misclassified on the path but not in the end, {clean} came back clean, "
        f"{worse} at a lower loss than the best"
    )
    return verdict(17, not (silent or clean or worse), detail)


def _is_worse(path: Path) -> bool:
    best = max(path.losses, default=path.returned)
    return path.returned < best - ROUNDING * max(1.0, abs(best))


def _follow(attack: Attack, model: Classifier, x: Images, y: Labels, threat: ThreatModel, rng: Generator) -> Path:
    """Record the path of the attack on one image."""
    losses: list[float] = []
    succeeded = False

    def record(points: Images, logits: Logits) -> None:
        nonlocal succeeded
        clean = x.expand_as(points)
        inside = threat.distance(points, clean) <= threat.eps + threat.tolerance
        inside &= ((points >= 0) & (points <= 1)).flatten(1).all(1) & (points != clean).flatten(1).any(1)
        labels = y.expand(len(points))
        losses.extend(LOSS(logits, clean_logits.expand_as(logits), labels)[inside].tolist())
        succeeded |= bool((inside & (logits.argmax(1) != labels)).any())

    def watched(points: Images) -> Logits:
        logits = model(points)
        record(points.detach(), logits.detach())
        return logits

    with torch.no_grad():
        clean_logits = model(x)
    x_adv = attack(watched, x, y, threat, rng=rng)
    with torch.no_grad():
        logits = model(x_adv)
    return Path(
        clean=float(LOSS(clean_logits, clean_logits, y)),
        losses=tuple(losses),
        succeeded=succeeded,
        returned=float(LOSS(logits, clean_logits, y)),
        returned_misclassified=bool(logits.argmax(1) != y),
        returned_clean=bool(threat.eps > 0 and torch.equal(x_adv, x)),
    )
