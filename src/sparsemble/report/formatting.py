"""Numbers as people read them, and the sentences that hold them."""

import re
from collections.abc import Sequence
from typing import Any

from sparsemble.report.summary import NAMES, row_of

UNITS = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


def count(value: float) -> str:
    """Write a count in three digits: 812, 14.6 k, 3.21 M."""
    for limit, unit in UNITS:
        if value >= 0.9995 * limit:
            return f"{value / limit:#.3g}".rstrip(".") + unit
    return f"{value:.0f}"


def size(value: float) -> str:
    """Write bytes in three digits: 812 B, 14.6 kB."""
    text = count(value)
    return text + ("B" if text[-1].isalpha() else " B")


def percent(share: float) -> str:
    """Write a share as percent with one decimal, without the sign."""
    return f"{100 * share:.1f}"


def round_percent(share: float) -> str:
    """Write a share as percent for a sentence: 80 %, 99.5 %."""
    return percent(share).removesuffix(".0") + " %"


def span(interval: Sequence[float]) -> str:
    """Write an interval of shares in percent: 41.0 to 52.2, with a dash."""
    low, high = interval
    return f"{percent(low)}\u2013{percent(high)}"


def interval(row: dict[str, Any]) -> str:
    """Write the interval of the worst case, in percent."""
    return span(row["worst_case_interval"])


def duration(seconds: float) -> str:
    """Write a time: 42 s, 4.2 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def members(row: dict[str, Any]) -> str:
    """Write the members run: clean / attacked, or once if no image can change it."""
    clean, attacked = row["members_run"]["clean"], row["members_run"]["attacked"]
    if clean == attacked and float(clean).is_integer():
        return f"{clean:.0f}"
    return f"{clean:.2f} / {attacked:.2f}"


def sentence(text: str) -> str:
    """Begin with a capital and end with one full stop."""
    text = text.strip().rstrip(".")
    return text[:1].upper() + text[1:] + "." if text else ""


def headline(summary: dict[str, Any]) -> str:
    """Say in a sentence what came out."""
    ensemble = row_of(summary, "ensemble_dynamic")
    low, high = ensemble["worst_case_interval"]
    run, of = ensemble["members_run"], len(summary["selection"]["ensemble"])
    return (
        f"An ensemble of {of} sparse sub-model{'s' if of > 1 else ''}, {round_percent(ensemble['sparsity'])} sparse in all, "
        f"keeps {percent(ensemble['worst_case'])} % accuracy in the worst case over every attack tried "
        f"(95 % interval {percent(low)} to {percent(high)}), running {run['clean']:.2f} members a clean image "
        f"and {run['attacked']:.2f} an attacked one."
    )


def beside(summary: dict[str, Any]) -> str:
    """Say what the other rows keep, for comparison with the headline."""
    kept = {name: percent(row_of(summary, name)["worst_case"]) + " %" for name in NAMES}
    return (
        f"In its own worst case the dense parent keeps {kept['dense']}, one HARP model of the same sparsity "
        f"{kept['harp']}, a small dense network of the same work {kept['small_dense']} and the best single sub-model "
        f"{kept['best_member']}. This is one seed: differences within the intervals say nothing."
    )


def threat(summary: dict[str, Any]) -> str:
    """Say what the adversary may do."""
    from sparsemble.core.threat import as_fraction  # torch: only once there is something to write

    norm, eps = summary["threat"]["norm"], as_fraction(summary["threat"]["eps"])
    if norm == "linf":
        return f"Every pixel value may move by up to {eps}, where an image spans 0 to 1 (norm linf)."
    return f"An image may move by a distance of up to {eps} in the norm {norm}, where a pixel spans 0 to 1."


def images(summary: dict[str, Any]) -> str:
    """Say how many test images the rows were measured on."""
    counts = sorted({row["images"] for row in summary["rows"]})
    if len(counts) == 1:
        return f"{counts[0]} test images, the same for every row."
    return f"{counts[0]} to {counts[-1]} test images: the rows were not measured on the same images."


AIMS = (
    (r"prefix1|member1", "the first member alone"),
    (r"prefix(\d+)", "the first {} members"),
    (r"member(\d+)", "member {} alone"),
    (r"expectation", "the answer expected over all stopping times"),
    (r"reweighted", "the members, those near a wrong answer first"),
    (r"deployed", "the deployed decision"),
    (r"maximum|mean_logit|soft_vote", "all members through another combiner"),
    (r"sequential", "the members, one after the other"),
    (r"hijack", "the stopping rule: stop early on a wrong answer"),
    (r"slowdown.*keep_label", "the stopping rule: run more members, same answer"),
    (r"slowdown", "the stopping rule: run more members"),
)
"""What an attack on an ensemble is made against, by what its label holds."""


def aim(label: str) -> str:
    """Say what an attack on an ensemble was made against."""
    for pattern, text in AIMS:
        if found := re.search(rf"(?:^|-)(?:{pattern})", label):
            return text.format(*found.groups())
    return "all members together"


def verdict(summary: dict[str, Any]) -> str:
    """Count the checks by their verdict."""
    number = {status: sum(check["status"] == status for check in summary["checks"]) for status in ("pass", "fail")}
    waived = len(summary["checks"]) - sum(number.values())
    return f"{number['fail']} failed, {waived} waived, {number['pass']} passed"
