"""Sentences that describe a result: threat model, images, mode of AutoAttack, reasons not to rely on a number."""

import re

from sparsemble.core.results import AttackResult, EvaluationResult, ThreatRecord
from sparsemble.report.formatting import count, plural

ATTACKED = (
    (r"prefix1|member1", "the first member alone"),
    (r"prefix(\d+)", "the first {} members"),
    (r"member(\d+)", "member {} alone"),
    (r"expectation", "the prediction expected over all stopping times"),
    (r"reweighted", "the members, those near a wrong prediction first"),
    (r"deployed", "the deployed decision"),
    (r"maximum|mean_logit|soft_vote", "all members through another combiner"),
    (r"sequential", "the members, one after the other"),
    (r"joint", "the prediction and the decision to stop together"),
    (r"hijack", "the stopping rule: stop early on a wrong prediction"),
    (r"slowdown.*keep_label", "the stopping rule: run more members, same prediction"),
    (r"slowdown", "the stopping rule: run more members"),
)
"""What an attack on an ensemble is made against, by what its label contains."""


def premises(result: EvaluationResult, rows: int = 1) -> str:
    """Describe what the adversary may do and knows, and the images that were attacked for so many rows."""
    threat, data = result.threat, result.data
    if threat.norm == "linf":
        change = f"Every pixel value may move by up to {threat.eps_text}, where an image spans 0 to 1 (norm linf)."
    elif threat.norm == "l1":
        change = f"Pixel values may move by {threat.eps_text} in sum, where an image spans 0 to 1 (norm l1)."
    else:
        change = (
            f"An image may move by a distance of up to {threat.eps_text} in the norm {threat.norm}, where a pixel "
            "spans 0 to 1."
        )
    all_, drawn = ("All ", "") if data.subset_seed is None else ("", f", drawn with seed {data.subset_seed}")
    same = ", the same for every row" if rows > 1 else ""
    images = f"{all_}{data.images} {data.split} images of {data.name}{drawn}, {data.classes} classes{same}."
    blind = " No attack used gradients; an adversary who has them may do more." if "black" in threat.knowledge else ""
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in result.model.notes)
    return f"{change} Knowledge: {threat.knowledge}.{blind} {images}{notes}"


def autoattack_runs(result: EvaluationResult) -> list[str]:
    """Return how AutoAttack ran, as in `exact` or `exact rand`; empty if it did not."""
    runs = [attack for attack in result.attacks if attack.mode is not None]
    return sorted({f"{attack.mode} {_variant(attack)}".removesuffix(" standard") for attack in runs})


def autoattack(result: EvaluationResult) -> str:
    """Describe how AutoAttack ran, and what its number may be compared with."""
    modes = {attack.mode for attack in result.attacks} - {None}
    if not modes:
        return "AutoAttack was not run, so no published number compares with this one."
    if "exact" not in modes:
        return (
            "AutoAttack ran in fast mode, a schedule of our own: published AutoAttack numbers do not compare with it."
        )
    variants = {_variant(attack) for attack in result.attacks if attack.mode}
    standard = "the published parts" if "standard" in variants else f"the variant {' and '.join(sorted(variants))}"
    return f"AutoAttack ran in exact mode, {standard}."


def _variant(attack: AttackResult) -> str:
    return str(attack.settings.get("variant", "standard"))


def alarms(result: EvaluationResult) -> list[str]:
    """Return what forbids to rely on the headline."""
    sentences = []
    if failed := len(result.checks_with("failed")):
        sentences.append(
            f"{plural(failed, 'check')} of this evaluation failed: do not rely on the number below before "
            f"{'it is' if failed == 1 else 'they are'} understood."
        )
    if result.model.selected_on == "test":
        sentences.append("Selected on test images: the accuracy of this checkpoint on them is too high.")
    return sentences


def distance(value: float | None, threat: ThreatRecord) -> str:
    """Write a distance in the unit of eps: 7.9/255 or 0.0312; None is that of images that were never misclassified."""
    if value is None:
        return "none found"
    return f"{255 * value:.3g}/255" if in_255ths(threat) else f"{value:.3g}"


def in_255ths(threat: ThreatRecord) -> bool:
    """Return whether eps is written as n/255."""
    return threat.eps_text.endswith("/255")


def attack_note(attack: AttackResult) -> str:
    """Describe an attack in a few words."""
    notes = [f"{attack.mode} mode"] if attack.mode else []
    if attack.kind == "ensemble attack":
        notes.append(f"against {_attacked_part(attack.label)}")
    if parts := [f"{part} {images}" for part, images in (attack.parts or {}).items() if images]:
        notes.append(f"adversarial images by part: {', '.join(parts)}")
    return "; ".join(notes)


def _attacked_part(label: str) -> str:
    for pattern, text in ATTACKED:
        if match := re.search(rf"(?:^|-)(?:{pattern})", label):
            return text.format(*match.groups())
    return "all members together"


def passes(result: EvaluationResult) -> str:
    """Write the number of images that the attacks sent through networks, forward and backward."""
    return count(result.passes.forward + result.passes.backward)
