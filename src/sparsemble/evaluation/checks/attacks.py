"""Did the attacks do their work: comparisons of attacks on the same images (checks 2 and 13 to 27)."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

import torch

from sparsemble.attacks.attack import TOLERANCE, attacks
from sparsemble.attacks.minimum_norm import MinimumNorm
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Counts, Flags, Images, Labels
from sparsemble.evaluation.checks.check import NOISE, Check, verdict, waived
from sparsemble.evaluation.checks.result import Result, missing, named, settings_of
from sparsemble.evaluation.shard import Decide

POINTS = 0.003
"""Accuracy by which twice the steps, the reference or a published value may differ: 0.3 points."""
SQUARE = 0.002
"""Accuracy that a blind search may still take off: 0.2 points."""
NEAR_ZERO = 0.01
"""Accuracy that an attack may leave a standard model."""
AGREEMENT = 0.98
"""Share of images on which our attack and the reference must come to the same end."""
TARGETED = ("apgd_targeted", "fab_targeted")
TARGETS = 9
"""Wrong classes that targeted attacks aim at, or all if there are fewer."""


def inside_threat(adversarial: Sequence[Images], x: Images, threat: ThreatModel) -> Check:
    """Check 2: every stored adversarial image lies in [0, 1] and in the ball; no passes."""
    if not adversarial:
        return waived(2, "no adversarial images were stored")
    # Extremes are taken by torch, which lets NaN through; Python's max and min may drop it.
    farthest = float(torch.stack([threat.distance(x_adv, x).max() for x_adv in adversarial]).max())
    low, high = (float(end) for end in torch.stack(list(adversarial)).aminmax())
    good = farthest <= threat.eps + TOLERANCE and low >= 0 and high <= 1
    detail = f"largest distance {farthest:.6f} of eps {threat.eps:.6f}, pixels in [{low:.3f}, {high:.3f}]"
    return verdict(2, good, detail)


def stronger_is_stronger(weak: float, strong: float, names: str) -> Check:
    """Check 13: an attack with more steps and restarts breaks at least as many images; no passes.

    Args:
        weak: accuracy under the weaker attack, such as FGSM.
        strong: accuracy under the stronger one, such as PGD.
        names: of both.
    """
    return verdict(13, strong <= weak + NOISE, f"{names}: {weak:.3f} against {strong:.3f}")


def strength_in_order(accuracy: Mapping[str, float]) -> Check:
    """Check 13: along attacks named from weak to strong, accuracy never rises beyond noise; no passes."""
    pairs = list(itertools.pairwise(accuracy.items()))
    if not pairs:
        return waived(13, f"one attack has nothing to be compared with: {', '.join(accuracy) or 'none ran'}")
    turned = [f"{strong} is weaker than {weak}" for (weak, a), (strong, b) in pairs if not b <= a + NOISE]
    told = ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items())
    return verdict(13, not turned, "; ".join([*turned, told]))


def falls_with_eps(curves: dict[str, list[float]], clean: dict[str, float], chance: float) -> Check:
    """Check 14: accuracy never rises with eps, equals clean accuracy at 0 and ends at chance or below; no passes."""
    rises = [row for row, curve in curves.items() if any(b > a + NOISE for a, b in itertools.pairwise(curve))]
    starts = [row for row, curve in curves.items() if abs(curve[0] - clean[row]) > 1e-9]
    ends = [row for row, curve in curves.items() if curve[-1] > chance]
    worst = max(curve[-1] for curve in curves.values())
    faults = f"rises in {rises or 'none'}, starts off clean accuracy in {starts or 'none'}"
    return verdict(14, not (rises or starts or ends), f"{faults}, last accuracy at most {worst:.3f}")


def steps_suffice(usual: Sequence[bool], doubled: Sequence[bool]) -> Check:
    """Check 15: twice the steps and more restarts move accuracy by less than 0.3 points, or by one image; no passes.

    Args:
        usual: images right under the attack as it is.
        doubled: the same images under twice its steps.
    """
    moved = abs(sum(usual) - sum(doubled))
    detail = f"{sum(usual)} of {len(usual)} images right, {sum(doubled)} with twice the steps or more"
    return verdict(15, _paired(usual, doubled) and moved <= max(1.0, POINTS * len(usual)), detail)


def square_finds_nothing(white_box_right: Sequence[bool], square_right: Sequence[bool]) -> Check:
    """Check 18: Square breaks at most 0.2 points of what stands under white-box attacks; no passes."""
    more = _only_by(square_right, white_box_right)
    detail = f"{more} of {len(white_box_right)} images are broken only by Square"
    if more > SQUARE * len(white_box_right):
        detail += "; gradients are not to be trusted, so adaptive attacks must follow"
    return verdict(18, more <= SQUARE * len(white_box_right), detail)


def only_by_square(result: Result, right: Mapping[str, Flags], part: Mapping[str, Counts]) -> Check:
    """Check 18: whether Square, alone or inside AutoAttack, broke what all other attacks had left; no passes.

    Args:
        result: with the settings of each attack and, for AutoAttack, the labels of its parts in order.
        right: (n) images right under each attack, by label, and when clean.
        part: (n) place of the part of AutoAttack that broke each image.
    """
    blind = {label for label, one in result["attacks"].items() if list(named(one["settings"], "square"))}
    cascades = {label for label, one in result["attacks"].items() if one.get("parts")}
    if not blind | cascades:
        return waived(18, "Square was not among the attacks")
    everything = torch.ones_like(next(iter(right.values())))
    white, square = everything.clone(), everything.clone()
    for label, outcome in right.items():
        by_square = torch.zeros_like(everything)
        if label in blind:
            by_square = ~outcome
        elif label in cascades:
            for place, name in enumerate(result["attacks"][label]["parts"]):
                by_square |= (part[label] == place) & name.startswith("square") & ~outcome
        white &= outcome | by_square
        square &= ~by_square
    return square_finds_nothing(white.tolist(), square.tolist())


def blind_is_weaker(white_box_right: Sequence[bool], blind_right: Sequence[bool], name: str) -> Check:
    """Check 19: an attack that sees labels only, or random noise, breaks nothing that gradients do not; no passes."""
    more = _only_by(blind_right, white_box_right)
    return verdict(19, more == 0, f"{more} of {len(white_box_right)} images are broken only by {name}")


def transfer_is_weaker(white_box_right: Sequence[bool], transferred_right: Sequence[bool], source: str) -> Check:
    """Check 20: images crafted on another model break nothing that white-box attacks do not break; no passes."""
    missed = _only_by(transferred_right, white_box_right)
    detail = f"{missed} of {len(white_box_right)} images are broken only by images crafted on {source}"
    return verdict(20, missed == 0, detail)


def targeted_and_untargeted(result: Result) -> Check:
    """Check 21: both kinds ran, at nine targets or all wrong classes if there are fewer; no passes."""
    settings, classes = list(settings_of(result).values()), int(result["data"]["classes"])
    cascades = [one for each in settings for one in named(each, "autoattack") if one.get("variant") != "rand"]
    aims = [one["targets"] for each in settings for name in TARGETED for one in named(each, name)]
    aims += [TARGETS] * len(cascades)
    untargeted = cascades or [each for each in settings if not any(list(named(each, name)) for name in TARGETED)]
    needed, most = min(TARGETS, classes - 1), min(max(aims, default=0), classes - 1)
    detail = f"targeted attacks aim at {most} of {classes - 1} wrong classes, {len(untargeted)} attacks are untargeted"
    return verdict(21, bool(untargeted) and most >= needed, detail)


def headline_is_union(result: Result) -> Check:
    """Check 22: the headline is the share of images right when clean and under every attack; no passes."""
    if lacking := missing(result, ["worst_case.outcomes", "worst_case.accuracy", "attacks"]):
        return verdict(22, False, f"the result lacks {', '.join(lacking)}")
    rows = [attack["outcomes"] for attack in result["attacks"].values()]
    rows += [result["clean_outcomes"]] if "clean_outcomes" in result else []
    outcomes, accuracy = result["worst_case"]["outcomes"], result["worst_case"]["accuracy"]
    if not rows or {len(row) for row in rows} != {len(outcomes)}:
        return verdict(22, False, "attacks and worst case are not about the same images")
    union = [min(found) for found in zip(*rows, strict=True)]
    share, least = sum(union) / len(union), min(sum(row) for row in rows) / len(union)
    differ = sum(a != b for a, b in zip(outcomes, union, strict=True))
    detail = f"headline {accuracy:.4f}, union {share:.4f}, smallest accuracy of one attack {least:.4f}"
    detail += f", {differ} outcomes are not the union's" if differ else ""
    return verdict(22, not differ and abs(accuracy - share) < 1e-6, detail)


@torch.no_grad()
def reproduces(decide: Decide, adversarial: Images, recorded: Sequence[int], batch: int) -> Check:
    """Check 23: stored adversarial images get the recorded answers again at another batch size; 1 decision an image."""
    again = torch.cat([decide(part).logits.argmax(1) for part in adversarial.split(batch)])
    differ = int((again.cpu() != torch.tensor(recorded)).sum())
    return verdict(23, differ == 0, f"{differ} of {len(recorded)} answers differ at batch size {batch}")


@torch.no_grad()
def decided_in_float32(decide: Decide, adversarial: Images, y: Labels, right: Sequence[bool]) -> Check:
    """Check 24: asked again in float32, autocast off, stored images are right and wrong as recorded.

    Costs 1 decision an image.
    """
    with torch.autocast(adversarial.device.type, enabled=False):
        logits = decide(adversarial.float()).logits
    if logits.dtype != torch.float32:
        return verdict(24, False, f"the deployed decision answers in {str(logits.dtype).removeprefix('torch.')}")
    differ = int(((logits.argmax(1) == y).cpu() != torch.tensor(list(right))).sum())
    return verdict(24, differ == 0, f"{differ} of {len(right)} outcomes differ in float32")


def validated(on_standard: Mapping[str, float], known: tuple[float, float] | None = None) -> Check:
    """Check 25: every attack breaks a standard model, and accuracy on a known model is the published one; no passes.

    Args:
        on_standard: accuracy that each attack leaves a model trained without a defence.
        known: accuracy measured and published, of a model with a published AutoAttack value.
    """
    strong = [label for label, accuracy in on_standard.items() if not accuracy <= NEAR_ZERO]
    if strong:
        told = ", ".join(f"{label} {on_standard[label]:.3f}" for label in strong)
        return verdict(25, False, f"a standard model still stands under {told}")
    if known and not abs(known[0] - known[1]) <= POINTS:
        return verdict(25, False, f"measured {known[0]:.4f} where {known[1]:.4f} was published")
    if not on_standard or not known:
        lacking = [] if on_standard else ["a standard model"]
        lacking += [] if known else ["a model with a published AutoAttack value"]
        return waived(25, f"the attacks were not run on {' nor on '.join(lacking)}")
    detail = f"a standard model keeps at most {max(on_standard.values()):.3f}"
    return verdict(25, True, f"{detail}; measured {known[0]:.4f} where {known[1]:.4f} was published")


def agrees_with_reference(ours: Mapping[str, Sequence[bool]], reference: Mapping[str, Sequence[bool]]) -> Check:
    """Check 26: each part and its reference implementation end alike on 98 % of images, within 0.3 points; no passes.

    Args:
        ours: images right under each of our attacks.
        reference: the same under the reference implementation, by the same names.
    """
    both = sorted(ours.keys() & reference.keys())
    if not both:
        return waived(26, "the reference implementation was not run beside ours")
    told, good = [], True
    for label in both:
        mine, theirs = list(ours[label]), list(reference[label])
        alike = sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine)
        good &= alike >= AGREEMENT and abs(sum(mine) - sum(theirs)) <= max(1.0, POINTS * len(mine))
        told.append(f"{label}: {100 * alike:.1f} % alike, {sum(mine)} against {sum(theirs)} of {len(mine)} right")
    return verdict(26, good, "; ".join(told))


def minimum_norms_told(result: Result) -> Check:
    """Check 27: minimum-norm attacks give their median distance beside accuracy at a stated norm and eps; no passes."""
    found = {label: result["attacks"][label] for label, one in settings_of(result).items() if _is_minimum_norm(one)}
    if not found:
        return waived(27, "no minimum-norm attack ran")
    faults = [f"the result lacks {field}" for field in missing(result, ["threat.norm", "threat.eps"])]
    for label, attack in found.items():
        norm = attack["settings"].get("norm", result["threat"].get("norm"))
        if norm != result["threat"].get("norm"):
            faults.append(f"{label} measures in {norm}, not in the table's {result['threat'].get('norm')}")
        lacking = missing(attack, ["median_distance", "minimum_distances", "robust_accuracy"])
        faults += [f"{label} lacks {field}" for field in lacking]
        if not lacking and not _is_median(attack["median_distance"], attack["minimum_distances"]):
            faults.append(f"{label}: median_distance = {attack['median_distance']} is not the median of its distances")
    return verdict(27, not faults, "; ".join(faults) or f"{', '.join(found)}: median distance and accuracy at eps")


def _is_minimum_norm(settings: dict[str, object]) -> bool:
    component = attacks.components.get(str(settings.get("name")))
    return component is not None and issubclass(component, MinimumNorm)


def _is_median(told: float | None, distances: Sequence[float | None]) -> bool:
    """Compare with both common medians of an even number of values; null is infinitely far."""
    values = [float("inf") if value is None else value for value in distances]
    wanted = {statistics.median_low(values), statistics.median(values), statistics.median_high(values)}
    said = float("inf") if told is None else told
    return said in wanted or any(abs(said - value) <= 1e-5 * max(1.0, value) for value in wanted)


def _only_by(other: Sequence[bool], white_box: Sequence[bool]) -> int:
    """Count images that only the other attack breaks."""
    return sum(white and not found for white, found in zip(white_box, other, strict=True))


def _paired(a: Sequence[bool], b: Sequence[bool]) -> bool:
    return len(a) == len(b) > 0
