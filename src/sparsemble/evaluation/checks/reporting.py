"""Does the result say what a reader needs (checks 1, 4 to 6 and 44 to 50)."""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparsemble.evaluation.checks.check import Check, verdict, waived
from sparsemble.evaluation.checks.result import Result, missing, says
from sparsemble.evaluation.statistics import wilson

SAME_EPS = 1e-9
"""Radii nearer than this are one radius: 8/255 and 0.031372549 are, 8/255 and 0.031 are not."""
SEEDS = 3
"""Trainings that a claim of superiority needs."""
THREAT = ("norm", "eps", "eps_text", "knowledge", "targeted")
FIELDS = (
    *("command", "source", "versions", "device", "dtype", "seeds", "seconds", "passes.forward", "passes.backward"),
    *("target.kind", "target.path", "target.sha256", "target.parameters", "target.nonzeros"),
    *("data.name", "data.sha256", "data.split", "data.images", "data.subset_seed", "data.classes"),
    *("clean_accuracy", "attacks", "worst_case.accuracy", "worst_case.interval", "worst_case.outcomes"),
    *("external", "unreliable"),
)
"""What a result must hold; the last two are RobustBench's."""
ATTACK = ("settings", "robust_accuracy", "interval", "outcomes", "passes.forward", "passes.backward", "seconds")
"""What every attack in it must hold."""
HASHES = ("target.sha256", "data.sha256")


def threat_recorded(result: Result) -> Check:
    """Check 1: norm, eps as a fraction, knowledge, and whether targeted are there and fit together; no passes."""
    if lacking := missing(result, [f"threat.{field}" for field in THREAT]):
        return verdict(1, False, f"the result lacks {', '.join(lacking)}")
    threat = result["threat"]
    empty = [field for field in ("norm", "knowledge") if not threat[field]]
    faults = [f"threat.{field} is empty" for field in empty]
    if not isinstance(threat["targeted"], bool):
        faults.append(f"threat.targeted = {threat['targeted']!r} must be true or false")
    if not says(str(threat["eps_text"]), threat["eps"]):
        faults.append(f"eps = {threat['eps']} is not what eps_text = {threat['eps_text']!r} says")
    told = f"{threat['norm']} {threat['eps_text']}, {threat['knowledge']}, targeted: {threat['targeted']}"
    return verdict(1, not faults, "; ".join(faults) or told)


def images_recorded(result: Result, available: int | None = None) -> Check:
    """Check 4: all test images, or a subset with its seed, and intervals that hold their accuracies; no passes.

    Args:
        result: of one row; rows of one table are compared by `same_images`.
        available: number of test images that the data set has, where it is known.
    """
    if lacking := missing(result, ["data.split", "data.images", "data.subset_seed", "worst_case.interval"]):
        return verdict(4, False, f"the result lacks {', '.join(lacking)}")
    data, worst = result["data"], result["worst_case"]
    images, seed = data["images"], data["subset_seed"]
    faults = [] if data["split"] == "test" else [f"the images are of the {data['split']} split"]
    if seed is None and available not in (None, images):
        faults.append(f"{images} of {available} test images, but no seed of the subset")
    lengths = {len(attack["outcomes"]) for attack in result["attacks"].values()} | {len(worst["outcomes"])}
    if lengths != {images}:
        faults.append(f"outcomes of {sorted(lengths)} images where data.images says {images}")
    low, high = worst["interval"]
    wide = wilson(round(worst["accuracy"] * images), images)
    if not low <= worst["accuracy"] <= high or abs(low - wide[0]) > 1e-3 or abs(high - wide[1]) > 1e-3:
        faults.append(f"[{low:.4f}, {high:.4f}] is not the 95 % interval of {worst['accuracy']:.4f} on {images} images")
    told = f"{images} test images, {'all of them' if seed is None else f'drawn with seed {seed}'}"
    return verdict(4, not faults, "; ".join(faults) or f"{told}, interval [{low:.3f}, {high:.3f}]")


def same_images(results: Sequence[Result]) -> Check:
    """Check 4: all rows of a table are about the same images of the same data; no passes."""
    kinds = {(r["data"]["sha256"], r["data"]["images"], tuple(r["data"].get("indices", ()))) for r in results}
    return verdict(4, len(kinds) == 1, f"{len(results)} rows on {len(kinds)} sets of images")


def fairly_selected(result: Result) -> Check:
    """Check 5: the checkpoint was chosen on held-out images; no passes."""
    chosen = result.get("selected_on", result.get("target", {}).get("selected_on"))
    if chosen is None:
        return waived(5, "nothing is known of how the checkpoint was chosen")
    return verdict(5, chosen == "held-out", f"selected on {chosen} images")


def one_eps(results: Sequence[Result]) -> Check:
    """Check 6: one norm and one eps in all rows, quoted ones included, each the radius its text says; no passes."""
    threats = [result["threat"] for result in results]
    threats += [one for result in results for one in result.get("quoted") or [] if "eps" in one]
    radii = sorted({threat["eps"] for threat in threats})
    norms = sorted({threat["norm"] for threat in threats if "norm" in threat})
    faults = [
        f"eps_text = {threat['eps_text']!r} is not {threat['eps']}"
        for threat in threats
        if "eps_text" in threat and not says(threat["eps_text"], threat["eps"])
    ]
    if radii[-1] - radii[0] > SAME_EPS:
        faults.append(f"rows at eps {', '.join(f'{eps:.6g}' for eps in radii)}")
    if len(norms) > 1:
        faults.append(f"rows in {' and '.join(norms)}")
    return verdict(
        6, not faults, "; ".join(faults) or f"{norms[0] if norms else ''} {radii[0]:.6g} in all rows".strip()
    )


def result_is_complete(result: Result) -> Check:
    """Check 44: configuration, versions, device, seeds, time, passes, outcomes and hashes are there; no passes."""
    lacking = missing(result, FIELDS)
    lacking += [
        f"attacks.{label}.{field}"
        for label, attack in result.get("attacks", {}).items()
        for field in missing(attack, ATTACK)
    ]
    if lacking:
        return verdict(44, False, f"the result lacks {', '.join(lacking)}")
    faults = [] if result["attacks"] else ["no attack ran"]
    images = result["data"]["images"]
    faults += [
        f"{label} has outcomes of {len(attack['outcomes'])} images, not of {images}"
        for label, attack in result["attacks"].items()
        if len(attack["outcomes"]) != images
    ]
    for field in HASHES:
        room, name = field.split(".")
        if not re.fullmatch(r"[0-9a-f]{64}", str(result[room][name])):
            faults.append(f"{field} is no SHA-256")
    for way in ("forward", "backward"):
        total = sum(attack["passes"][way] for attack in result["attacks"].values())
        if result["passes"][way] < total:
            faults.append(f"passes.{way} = {result['passes'][way]} but the attacks took {total}")
    count = len(result["attacks"])
    return verdict(
        44, not faults, "; ".join(faults) or f"{len(FIELDS)} fields, and {len(ATTACK)} of each of {count} attacks"
    )


def seeds_behind(accuracies: Sequence[float], claims: bool) -> Check:
    """Check 45: a claim of superiority stands on three trainings with other seeds, told with their spread; no passes.

    Args:
        accuracies: robust accuracy, one for each seed of training.
        claims: whether the report says that something is better than something else.
    """
    count = len(accuracies)
    if count < SEEDS:
        told = f"{count} of {SEEDS} seeds of training"
        return (
            verdict(45, False, f"superiority claimed on {told}")
            if claims
            else waived(45, f"{told}; nothing is claimed")
        )
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    return verdict(45, True, f"{count} seeds: {mean:.4f} +- {spread:.4f}")


def extra_data_declared(result: Result) -> Check:
    """Check 46: extra or generated training data is declared with its amount, or that there was none; no passes."""
    if "extra_data" not in result:
        return verdict(46, False, "the result lacks extra_data (null: none)")
    amount, flag = result["extra_data"], result.get("additional_data")
    if flag is not None and bool(flag) != bool(amount):
        return verdict(46, False, f"extra_data = {amount!r} but additional_data = {flag}")
    if amount in (True, ""):
        return verdict(46, False, f"extra_data = {amount!r} says no amount")
    return verdict(46, True, f"extra training data: {amount or 'none'}")


def curve_reaches_zero(result: Result) -> Check:
    """Check 47: accuracy is drawn against growing eps, from 0 until no image is right; no passes."""
    curve = result.get("security_curve")
    if curve is None:
        return waived(47, "no security curve was drawn")
    eps, accuracy = curve["eps"], curve["accuracy"]
    if len(eps) != len(accuracy) or len(eps) < 2:
        return verdict(47, False, f"the curve has {len(eps)} radii and {len(accuracy)} accuracies")
    faults = [] if eps[0] == 0 else [f"starts at eps {eps[0]:g}, not at 0"]
    faults += [] if list(eps) == sorted(set(eps)) else ["radii do not grow"]
    faults += [] if accuracy[-1] == 0 else [f"ends at accuracy {accuracy[-1]:.3f}, not at 0"]
    return verdict(47, not faults, "; ".join(faults) or f"{len(eps)} radii, zero at eps {eps[-1]:g}")


def quotes_have_sources(result: Result) -> Check:
    """Check 48: every number from a paper names its source, and none poses as re-measured; no passes."""
    if "quoted" not in result:
        return verdict(48, False, "the result lacks quoted (an empty list: nothing is quoted)")
    quoted = result["quoted"]
    faults = [f"quoted[{i}] names no source" for i, one in enumerate(quoted) if not one.get("source")]
    faults += [
        f"quoted[{i}] has outcomes, as if it were measured here" for i, one in enumerate(quoted) if "outcomes" in one
    ]
    outside = [field for field in ("reported", "external") if result.get(field) is not None]
    faults += [f"{field} is given by others, but quoted is empty" for field in outside if not quoted]
    return verdict(48, not faults, "; ".join(faults) or f"{len(quoted)} quoted numbers, each with its source")


def wider_tests(accuracies: Mapping[str, float]) -> Check:
    """Check 49: accuracy under other threats, such as corruptions, another norm, rotations; optional; no passes."""
    if not accuracies:
        return waived(49, "optional; no other norm, corruption or movement was tried")
    wrong = [name for name, value in accuracies.items() if not 0 <= value <= 1]
    return verdict(49, not wrong, ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))


def open_checks_shown(checks: Sequence[Check | dict[str, Any]], headline: str) -> Check:
    """Check 50: the text around the headline names every check that failed or was waived; no passes.

    Args:
        checks: all others of the result.
        headline: what stands at the top of the page or the terminal.
    """
    rows = [
        (c.number, c.name, c.status) if isinstance(c, Check) else (c["number"], c["name"], c["status"]) for c in checks
    ]
    hidden = [number for number, name, status in rows if status != "pass" and number != 50 and name not in headline]
    opened = sum(status != "pass" for _, _, status in rows)
    detail = f"{opened} checks failed or were waived; not shown: {', '.join(map(str, hidden)) or 'none'}"
    return verdict(50, not hidden, detail)
