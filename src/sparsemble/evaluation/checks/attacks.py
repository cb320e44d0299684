"""Are the attacks sound: comparisons of attacks on the same images (checks 2 and 13 to 27)."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

import torch

from sparsemble.attacks.attack import attacks
from sparsemble.attacks.minimum_norm import MinimumNorm
from sparsemble.core.results import AttackResult, CheckResult, EvaluationResult
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Counts, Flags, Images, Labels
from sparsemble.evaluation.checks import NOISE, skipped, verdict
from sparsemble.evaluation.checks.settings import named, settings_of, uses
from sparsemble.evaluation.job import Decide

POINTS = 0.003
"""Accuracy by which twice the steps, the reference or a published value may differ: 0.3 points."""
SQUARE = 0.002
"""Accuracy by which a search without gradients may still lower the result: 0.2 points."""
NEAR_ZERO = 0.01
"""Accuracy that an attack may leave a standard model."""
AGREEMENT = 0.98
"""Fraction of images on which our attack and the reference must give the same outcome."""
TARGETED = ("apgd_targeted", "fab_targeted")
TARGETS = 9
"""Wrong classes that targeted attacks aim at, or all if there are fewer."""


def inside_threat(adversarial: Sequence[Images], x: Images, threat: ThreatModel) -> CheckResult:
    """Check 2: every stored adversarial image lies in [0, 1] and in the ball; no passes.

    Args:
        adversarial: stored adversarial images of each attack, each (B, C, H, W).
        x: the clean images, (B, C, H, W).
        threat: the norm and the radius.
    """
    if not adversarial:
        return skipped(2, "no adversarial images were stored")
    # Extremes are taken by torch, which lets NaN through; Python's max and min may drop it.
    farthest = float(torch.stack([threat.distance(x_adv, x).max() for x_adv in adversarial]).max())
    low, high = (float(end) for end in torch.stack(list(adversarial)).aminmax())
    good = farthest <= threat.eps + threat.tolerance and low >= 0 and high <= 1
    detail = f"largest distance {farthest:.6f} of eps {threat.eps:.6f}, pixels in [{low:.3f}, {high:.3f}]"
    return verdict(2, good, detail)


def strength_in_order(accuracy: Mapping[str, float]) -> CheckResult:
    """Check 13: along attacks named from weak to strong, accuracy never rises beyond noise; no passes."""
    pairs = list(itertools.pairwise(accuracy.items()))
    if not pairs:
        return skipped(13, f"one attack has nothing to be compared with: {', '.join(accuracy) or 'none ran'}")
    inverted = [f"{strong} is weaker than {weak}" for (weak, a), (strong, b) in pairs if not b <= a + NOISE]
    values = ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items())
    return verdict(13, not inverted, "; ".join([*inverted, values]))


def falls_with_eps(name: str, curve: Sequence[float], clean: float, chance: float) -> CheckResult:
    """Check 14: accuracy never rises with eps, equals clean accuracy at 0 and ends at chance or below; no passes.

    Args:
        name: of the model.
        curve: accuracy at growing eps.
        clean: accuracy on clean images.
        chance: accuracy at or below which a curve has reached chance, in [0, 1].
    """
    rises = any(b > a + NOISE for a, b in itertools.pairwise(curve))
    off_clean = abs(curve[0] - clean) > 1e-9
    faults = f"rises in {[name] if rises else 'none'}, starts off clean accuracy in {[name] if off_clean else 'none'}"
    good = not (rises or off_clean) and curve[-1] <= chance
    return verdict(14, good, f"{faults}, last accuracy at most {curve[-1]:.3f}")


def steps_suffice(usual: Sequence[bool], doubled: Sequence[bool], name: str = "the attack") -> CheckResult:
    """Check 15: twice the steps of the headline attack break at most 0.3 points more, or one image; no passes.

    Args:
        usual: images that are correct under the attack behind the headline.
        doubled: the same images under the attack as it is and under twice its steps.
        name: of the attack.
    """
    more = sum(before and not after for before, after in zip(usual, doubled, strict=True))
    detail = f"of {len(usual)} images {sum(usual)} are correct under {name}, {sum(usual) - more} with twice its steps"
    return verdict(15, len(usual) > 0 and more <= max(1.0, POINTS * len(usual)), detail)


def square_finds_nothing(white_box: Sequence[bool], square: Sequence[bool]) -> CheckResult:
    """Check 18: Square breaks at most 0.2 points of the images that withstand all other attacks; no passes."""
    more = _only_by(square, white_box)
    detail = f"{more} of {len(white_box)} images are broken only by Square"
    if more > SQUARE * len(white_box):
        detail += "; gradients are not to be trusted, so adaptive attacks must follow"
    return verdict(18, more <= SQUARE * len(white_box), detail)


def only_by_square(
    attacks: Sequence[AttackResult], correct: Mapping[str, Flags], part: Mapping[str, Counts]
) -> CheckResult:
    """Check 18: whether Square, alone or inside AutoAttack, broke what all other attacks had left; no passes.

    Args:
        attacks: with the settings of each and, for AutoAttack, the labels of its parts in order.
        correct: (n) images that are correct under each attack, by label, and when clean.
        part: (n) index of the part of AutoAttack that broke each image.
    """
    blind = {attack.label for attack in attacks if uses(attack.settings, "square")}
    cascades = {attack.label: list(attack.parts) for attack in attacks if attack.parts}
    if not blind | cascades.keys():
        return skipped(18, "Square was not among the attacks")
    everything = torch.ones_like(next(iter(correct.values())))
    white, square = everything.clone(), everything.clone()
    for label, outcome in correct.items():
        by_square = ~outcome if label in blind else ~everything
        for i, name in enumerate(cascades.get(label, ())):
            by_square |= (part[label] == i) & name.startswith("square") & ~outcome
        white &= outcome | by_square
        square &= ~by_square
    return square_finds_nothing(white.tolist(), square.tolist())


def blind_is_weaker(white_box: Sequence[bool], blind: Sequence[bool], name: str) -> CheckResult:
    """Check 19: an attack that sees labels only, or random noise, breaks nothing that gradients do not; no passes.

    Args:
        white_box: images that are correct under all attacks of the evaluation.
        blind: the same images under the other attack.
        name: of the other attack.
    """
    more = _only_by(blind, white_box)
    return verdict(19, more == 0, f"{more} of {len(white_box)} images are broken only by {name}")


def transfer_is_weaker(white_box: Sequence[bool], transferred: Sequence[bool], source: str) -> CheckResult:
    """Check 20: images crafted on another model break nothing that white-box attacks do not break; no passes.

    Args:
        white_box: images that are correct under all attacks of the evaluation.
        transferred: the same images under the transferred ones.
        source: the other model.
    """
    more = _only_by(transferred, white_box)
    return verdict(20, more == 0, f"{more} of {len(white_box)} images are broken only by images crafted on {source}")


def targeted_and_untargeted(result: EvaluationResult) -> CheckResult:
    """Check 21: both kinds ran, at nine targets or all wrong classes if there are fewer; no passes."""
    settings, classes = settings_of(result), result.data.classes
    cascades = [attack for attack in named(settings, "autoattack") if attack.get("variant") != "rand"]
    aims = [attack["targets"] for attack in named(settings, *TARGETED)] + [TARGETS] * len(cascades)
    untargeted = cascades or [attack for attack in settings if not uses(attack, *TARGETED)]
    needed, most = min(TARGETS, classes - 1), min(max(aims, default=0), classes - 1)
    detail = f"targeted attacks aim at {most} of {classes - 1} wrong classes, {len(untargeted)} attacks are untargeted"
    return verdict(21, bool(untargeted) and most >= needed, detail)


def headline_is_union(result: EvaluationResult) -> CheckResult:
    """Check 22: the headline is the fraction of images correct when clean and under every attack; no passes."""
    rows = [result.clean_correct, *(attack.correct for attack in result.attacks)]
    outcomes, accuracy = result.worst_case.correct, result.worst_case.accuracy
    if len(rows) < 2 or {len(row) for row in rows} != {len(outcomes)}:
        return verdict(22, False, "attacks and worst case are not about the same images")
    union = [min(column) for column in zip(*rows, strict=True)]
    fraction, least = sum(union) / len(union), min(sum(row) for row in rows) / len(union)
    differ = sum(a != b for a, b in zip(outcomes, union, strict=True))
    detail = f"headline {accuracy:.4f}, union {fraction:.4f}, smallest accuracy of one attack {least:.4f}"
    detail += f", {differ} outcomes are not the union's" if differ else ""
    return verdict(22, not differ and abs(accuracy - fraction) < 1e-6, detail)


@torch.no_grad()
def reproduces(decide: Decide, adversarial: Images, recorded: Sequence[int], batch: int) -> CheckResult:
    """Check 23: stored adversarial images get the recorded predictions at another batch size; 1 decision an image.

    Args:
        decide: the deployed decision.
        adversarial: (n, C, H, W) stored images.
        recorded: (n) classes that were predicted for them.
        batch: images at once.
    """
    again = torch.cat([decide(part).logits.argmax(1) for part in adversarial.split(batch)])
    differ = int((again.cpu() != torch.tensor(recorded)).sum())
    return verdict(23, differ == 0, f"{differ} of {len(recorded)} predictions differ at batch size {batch}")


@torch.no_grad()
def decided_in_float32(decide: Decide, adversarial: Images, y: Labels, correct: Sequence[bool]) -> CheckResult:
    """Check 24: decided again in float32, autocast off, stored images are correct as recorded; 1 decision an image.

    Args:
        decide: the deployed decision.
        adversarial: (n, C, H, W) stored images.
        y: (n) true classes.
        correct: (n) whether the recorded prediction was the true class.
    """
    with torch.autocast(adversarial.device.type, enabled=False):
        logits = decide(adversarial.float()).logits
    if logits.dtype != torch.float32:
        return verdict(24, False, f"the deployed decision returns {str(logits.dtype).removeprefix('torch.')}")
    differ = int(((logits.argmax(1) == y).cpu() != torch.tensor(list(correct))).sum())
    return verdict(24, differ == 0, f"{differ} of {len(correct)} outcomes differ in float32")


def validated(on_standard: Mapping[str, float], known: tuple[float, float] | None = None) -> CheckResult:
    """Check 25: every attack breaks a standard model, and the accuracy of a known one is as published; no passes."""
    strong = [label for label, accuracy in on_standard.items() if not accuracy <= NEAR_ZERO]
    if strong:
        accuracies = ", ".join(f"{label} {on_standard[label]:.3f}" for label in strong)
        return verdict(25, False, f"a standard model withstands {accuracies}")
    if known and not abs(known[0] - known[1]) <= POINTS:
        return verdict(25, False, f"measured {known[0]:.4f} where {known[1]:.4f} was published")
    if not on_standard or not known:
        lacking = [] if on_standard else ["a standard model"]
        lacking += [] if known else ["a model with a published AutoAttack value"]
        return skipped(25, f"the attacks were not run on {' nor on '.join(lacking)}")
    detail = f"a standard model keeps at most {max(on_standard.values()):.3f}"
    return verdict(25, True, f"{detail}; measured {known[0]:.4f} where {known[1]:.4f} was published")


def agrees_with_reference(ours: Mapping[str, Sequence[bool]], reference: Mapping[str, Sequence[bool]]) -> CheckResult:
    """Check 26: each part and its reference implementation agree on 98 % of images, within 0.3 points; no passes."""
    both = sorted(ours.keys() & reference.keys())
    if not both:
        return skipped(26, "the reference implementation was not run beside ours")
    details, good = [], True
    for label in both:
        mine, theirs = list(ours[label]), list(reference[label])
        alike = sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine)
        good &= alike >= AGREEMENT and abs(sum(mine) - sum(theirs)) <= max(1.0, POINTS * len(mine))
        details.append(f"{label}: {100 * alike:.1f} % alike, {sum(mine)} against {sum(theirs)} of {len(mine)} correct")
    return verdict(26, good, "; ".join(details))


def minimum_norms_reported(result: EvaluationResult) -> CheckResult:
    """Check 27: minimum-norm attacks give their median distance beside accuracy at a stated norm and eps; no passes."""
    minimum_norm = {name for name, kind in attacks.components.items() if issubclass(kind, MinimumNorm)}
    ran = [attack for attack in result.attacks if attack.settings.get("name") in minimum_norm]
    if not ran:
        return skipped(27, "no minimum-norm attack ran")
    faults = []
    for attack in ran:
        norm = attack.settings.get("norm", result.threat.norm)
        if norm != result.threat.norm:
            faults.append(f"{attack.label} measures in {norm}, not in the table's {result.threat.norm}")
        if attack.minimum_distances is None:
            faults.append(f"{attack.label} lacks minimum_distances")
        elif not _is_median(attack.median_distance, attack.minimum_distances):
            median = f"median_distance = {attack.median_distance}"
            faults.append(f"{attack.label}: {median} is not the median of its distances")
    labels = ", ".join(attack.label for attack in ran)
    return verdict(27, not faults, "; ".join(faults) or f"{labels}: median distance and accuracy at eps")


def _is_median(median: float | None, distances: Sequence[float | None]) -> bool:
    """Compare with both common medians of an even number of values; None is infinitely far."""
    values = [float("inf") if value is None else value for value in distances]
    medians = {statistics.median_low(values), statistics.median(values), statistics.median_high(values)}
    given = float("inf") if median is None else median
    return given in medians or any(abs(given - value) <= 1e-5 * max(1.0, value) for value in medians)


def _only_by(other: Sequence[bool], white_box: Sequence[bool]) -> int:
    """Count images that only the other attack breaks."""
    return sum(withstands and not correct for withstands, correct in zip(white_box, other, strict=True))
