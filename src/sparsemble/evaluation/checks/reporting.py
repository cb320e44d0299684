"""Does the result hold what a reader needs (checks 1, 4 to 6 and 44 to 50)."""

import re
import statistics
from collections.abc import Sequence

from sparsemble.core.results import CheckResult, EvaluationResult
from sparsemble.evaluation.checks import skipped, verdict
from sparsemble.evaluation.statistics import wilson

SAME_EPS = 1e-9
"""Radii nearer than this are one radius: 8/255 and 0.031372549 are, 8/255 and 0.031 are not."""
SEEDS = 3
"""Trainings that a claim of superiority needs."""
NO_EXTRA_DATA = "none"


def threat_recorded(result: EvaluationResult) -> CheckResult:
    """Check 1: norm, eps as a fraction and the adversary's knowledge are there; no passes.

    The record itself refuses an eps that is not the number its text stands for.
    """
    threat = result.threat
    faults = [f"threat.{field} is empty" for field in ("norm", "knowledge") if not getattr(threat, field)]
    detail = f"{threat.norm} {threat.eps_text}, {threat.knowledge}, targeted: {threat.targeted}"
    return verdict(1, not faults, "; ".join(faults) or detail)


def images_recorded(result: EvaluationResult, available: int | None = None) -> CheckResult:
    """Check 4: all test images (`available` in number), or a subset with its seed, and its interval; no passes."""
    data, worst = result.data, result.worst_case
    images, seed = data.images, data.subset_seed
    faults = [] if data.split == "test" else [f"the images are of the {data.split} split"]
    if seed is None and available not in (None, images):
        faults.append(f"{images} of {available} test images, but no seed of the subset")
    low, high = worst.interval
    expected = wilson(round(worst.accuracy * images), images)
    if abs(low - expected[0]) > 1e-3 or abs(high - expected[1]) > 1e-3:
        faults.append(f"[{low:.4f}, {high:.4f}] is not the 95 % interval of {worst.accuracy:.4f} on {images} images")
    if not faults and seed is None and available is None:
        return skipped(4, f"it is not known whether these {images} images are all test images of the data set")
    detail = f"{images} test images, {'all of them' if seed is None else f'drawn with seed {seed}'}"
    return verdict(4, not faults, "; ".join(faults) or f"{detail}, interval [{low:.3f}, {high:.3f}]")


def same_images(results: Sequence[EvaluationResult]) -> CheckResult:
    """Check 4: all rows of a table are about the same images of the same data; no passes."""
    kinds = {(result.data.sha256, result.data.images, result.data.indices) for result in results}
    return verdict(4, len(kinds) == 1, f"{len(results)} rows on {len(kinds)} sets of images")


def fairly_selected(result: EvaluationResult) -> CheckResult:
    """Check 5: the checkpoint was chosen on held-out images; no passes."""
    if result.model.selected_on is None:
        return skipped(5, "it is not known how the checkpoint was chosen")
    return verdict(5, result.model.selected_on == "held-out", f"selected on {result.model.selected_on} images")


def one_eps(results: Sequence[EvaluationResult]) -> CheckResult:
    """Check 6: one norm and one eps in all rows, quoted ones included; no passes."""
    quoted = [number for result in results for number in result.quoted if "eps" in number]
    radii = sorted({result.threat.eps for result in results} | {number["eps"] for number in quoted})
    norms = sorted(
        {result.threat.norm for result in results} | {number["norm"] for number in quoted if "norm" in number}
    )
    faults = []
    if radii[-1] - radii[0] > SAME_EPS:
        faults.append(f"rows at eps {', '.join(f'{eps:.6g}' for eps in radii)}")
    if len(norms) > 1:
        faults.append(f"rows in {' and '.join(norms)}")
    return verdict(6, not faults, "; ".join(faults) or f"{norms[0]} {radii[0]:.6g} in all rows")


def result_is_complete(result: EvaluationResult) -> CheckResult:
    """Check 44: command, versions, machine, hashes and settings are filled in; no passes."""
    fields = {
        "command": result.command,
        "versions": result.versions,
        "machine": result.machine,
        "device": result.device,
        "model.path": result.model.path,
        "data.name": result.data.name,
    }
    faults = [f"{name} is empty" for name, value in fields.items() if not value]
    hashes = {"model.sha256": result.model.sha256, "data.sha256": result.data.sha256}
    faults += [f"{name} is no SHA-256" for name, value in hashes.items() if not re.fullmatch(r"[0-9a-f]{64}", value)]
    faults += [f"{attack.label} has no settings" for attack in result.attacks if not attack.settings]
    detail = f"provenance, hashes and outcomes of {result.data.images} images under {len(result.attacks)} attacks"
    return verdict(44, not faults, "; ".join(faults) or detail)


def seeds_behind(accuracies: Sequence[float], claims: bool) -> CheckResult:
    """Check 45: a claim of superiority stands on three seeds of training and gives their spread; no passes."""
    count = len(accuracies)
    if count < SEEDS:
        few = f"{count} of {SEEDS} seeds of training"
        nothing_claimed = skipped(45, f"{few}; nothing is claimed to be better")
        return verdict(45, False, f"superiority claimed on {few}") if claims else nothing_claimed
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    return verdict(45, True, f"{count} seeds: {mean:.4f} +- {spread:.4f}")


def extra_data_declared(result: EvaluationResult) -> CheckResult:
    """Check 46: extra or generated training data is declared with its amount, or there was none; no passes."""
    amount = result.model.extra_data
    if amount is None:
        return skipped(46, "it is not known what data the model was trained on")
    if not amount.strip() or (amount != NO_EXTRA_DATA and not re.search(r"\d", amount)):
        return verdict(46, False, f"extra_data = {amount!r} gives no amount")
    return verdict(46, True, f"extra training data: {amount}")


def curve_reaches_zero(result: EvaluationResult) -> CheckResult:
    """Check 47: accuracy is drawn against growing eps, from 0 until no image is correct; no passes."""
    curve = result.security_curve
    if curve is None:
        return skipped(47, "no security curve was drawn")
    eps, last = curve.eps, curve.accuracy[-1]
    faults = [] if eps[0] == 0 else [f"starts at eps {eps[0]:g}, not at 0"]
    faults += [] if last == 0 else [f"ends at accuracy {last:.3f}, not at 0"]
    return verdict(47, not faults, "; ".join(faults) or f"{len(eps)} radii, zero at eps {eps[-1]:g}")


def quotes_have_sources(result: EvaluationResult) -> CheckResult:
    """Check 48: every number from a paper names its source, and none poses as re-measured; no passes."""
    if not result.quoted:
        return skipped(48, "no number is quoted")
    faults = [f"quoted[{i}] names no source" for i, number in enumerate(result.quoted) if not number.get("source")]
    faults += [
        f"quoted[{i}] has outcomes, as if it were measured here"
        for i, number in enumerate(result.quoted)
        if {"outcomes", "correct"} & number.keys()
    ]
    return verdict(48, not faults, "; ".join(faults) or f"{len(result.quoted)} quoted numbers, each with its source")


def wider_tests(result: EvaluationResult) -> CheckResult:
    """Check 49: beyond the threat model the classifier is better than chance, and nothing there refutes its number.

    A corrupted image that lies inside the threat model is an attack without a search: it must not mislead
    the classifier where the attacks failed. No passes.
    """
    corrupted = result.corruptions
    if corrupted is None:
        return skipped(49, "optional; `--corruptions` measures accuracy under the common corruptions")
    chance = 1 / result.data.classes
    faults = [f"{corrupted.missed} images withstand every attack, but not a corruption inside the threat model"] * bool(
        corrupted.missed
    )
    if corrupted.mean <= chance:
        faults.append(f"mean accuracy over corruptions is {corrupted.mean:.3f}, no better than chance ({chance:.3f})")
    worst = min(corrupted.corruptions, key=lambda corruption: corruption.mean)
    detail = (
        f"mean accuracy {corrupted.mean:.3f} over {len(corrupted.corruptions)} corruptions, least under {worst.name} "
        f"({worst.mean:.3f}); {corrupted.inside} of the corrupted images lie inside the threat model"
    )
    return verdict(49, not faults, "; ".join([*faults, detail]))


def open_checks_shown(checks: Sequence[CheckResult], text: str) -> CheckResult:
    """Check 50: the text around the headline names every failed check and counts the skipped ones; no passes."""
    if not text:
        return skipped(50, "the result was not shown")
    shown = " ".join(text.split())
    failed = [check for check in checks if check.status == "failed"]
    count = sum(check.status == "skipped" for check in checks)
    hidden = [check.number for check in failed if check.name not in shown]
    faults = [f"not shown: failed check {', '.join(map(str, hidden))}"] if hidden else []
    if count and not re.search(rf"\b{count}\b(?: checks? were| were)? skipped|skipped:? {count}\b", shown):
        faults.append(f"{count} checks were skipped, and the text does not give that number")
    detail = f"{len(failed)} failed checks are named, {count} skipped counted"
    return verdict(50, not faults, "; ".join(faults) or detail)
