"""What an attack asks on its way, image by image: the evidence of checks 16 and 17."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.attack import TOLERANCE, Attack
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.loss import AttackLoss
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, Logits
from sparsemble.evaluation.checks.check import Check, verdict, waived

LAST_TENTH = 0.05
"""Share of the whole climb that the last tenth of a path may still gain."""
SHORTEST = 10
"""Points that a path must have to be judged."""
ROUNDING = 1e-4
"""Share of a loss, or of 1, by which a point may seem worse when asked again."""


@final
@dataclass(frozen=True)
class Path:
    """One attack on one image that is answered rightly when clean."""

    clean: float
    """Loss at the clean image."""
    losses: tuple[float, ...]
    """Loss at each point asked inside the ball, in order, the clean image left out."""
    broke: bool
    """Whether one of those points was misclassified."""
    returned: float
    """Loss at the point that came back."""
    returned_broken: bool
    returned_clean: bool
    """Whether it is the clean image."""


def follow(
    attack: Attack,
    model: Classifier,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    *,
    rng: Generator,
    loss: AttackLoss = CrossEntropy(),  # noqa: B008 (frozen)
) -> list[Path]:
    """Run an attack image by image and note what it asks; costs what the attack costs, and 2 forward passes an image.

    Args:
        attack: what is checked.
        model: what it attacks.
        x: a few images; those answered wrongly are left out.
        y: their classes.
        threat: where points may lie.
        rng: draws the attack's random starts.
        loss: the one that the attack climbs.
    """
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero()[:, 0].tolist()
    return [_follow(attack, model, x[i : i + 1], y[i : i + 1], threat, rng, loss) for i in right]


def loss_converged(paths: Sequence[Path]) -> Check:
    """Check 16: the last tenth of a path adds little to the best loss so far, on images that still stand; no passes."""
    standing = [path for path in paths if not path.broke]
    if not paths:
        return waived(16, "no image is answered rightly when clean, so there was nothing to follow")
    if not standing:
        return verdict(16, True, f"all of {len(paths)} images were broken on the way")
    if min(len(path.losses) for path in standing) < SHORTEST:
        return waived(16, f"a path of fewer than {SHORTEST} points has no last tenth")
    shares = []
    for path in standing:
        end, before = max(path.losses), max(path.losses[: int(0.9 * len(path.losses))])
        shares.append((end - before) / max(end - path.clean, ROUNDING))
    share = sum(shares) / len(shares)
    detail = f"the last tenth of the path adds {100 * share:.1f} % of the climb, on {len(standing)} images that stand"
    return verdict(16, share < LAST_TENTH, detail)


def keeps_best(paths: Sequence[Path], *, by_loss: bool = True) -> Check:
    """Check 17: the point that broke the image, or that of highest loss, comes back, not the clean one; no passes.

    Args:
        paths: of one attack, followed by the loss that it climbs.
        by_loss: off for attacks that rank points by something else, such as their distance.
    """
    if not paths:
        return waived(17, "no image is answered rightly when clean, so there was nothing to follow")
    silent = sum(path.broke and not path.returned_broken for path in paths)
    clean = sum(path.returned_clean for path in paths)
    worse = sum(by_loss and not path.broke and _is_worse(path) for path in paths)
    detail = (
        f"of {len(paths)} images, {silent} were broken on the way but not in the end, {clean} came back clean, "
        f"{worse} at a lower loss than the best"
    )
    return verdict(17, not (silent or clean or worse), detail)


def _is_worse(path: Path) -> bool:
    best = max(path.losses, default=path.returned)
    return path.returned < best - ROUNDING * max(1.0, abs(best))


def _follow(
    attack: Attack, model: Classifier, x: Images, y: Labels, threat: ThreatModel, rng: Generator, loss: AttackLoss
) -> Path:
    """Follow the attack on one image."""
    losses: list[float] = []
    broke = False

    def note(points: Images, logits: Logits) -> None:
        nonlocal broke
        clean = x.expand_as(points)
        inside = threat.distance(points, clean) <= threat.eps + TOLERANCE
        inside &= ((points >= 0) & (points <= 1)).flatten(1).all(1) & (points != clean).flatten(1).any(1)
        labels = y.expand(len(points))
        losses.extend(loss(logits, clean_logits.expand_as(logits), labels)[inside].tolist())
        broke |= bool((inside & (logits.argmax(1) != labels)).any())

    def watched(points: Images) -> Logits:
        logits = model(points)
        note(points.detach(), logits.detach())
        return logits

    with torch.no_grad():
        clean_logits = model(x)
    x_adv = attack(watched, x, y, threat, rng=rng)
    with torch.no_grad():
        answer = model(x_adv)
    return Path(
        clean=float(loss(clean_logits, clean_logits, y)),
        losses=tuple(losses),
        broke=broke,
        returned=float(loss(answer, clean_logits, y)),
        returned_broken=bool(answer.argmax(1) != y),
        returned_clean=bool(threat.eps > 0 and torch.equal(x_adv, x)),
    )
