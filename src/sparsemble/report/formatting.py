"""Numbers as people read them."""

from collections.abc import Sequence

from sparsemble.core.results import MembersRun

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


def percent(fraction: float) -> str:
    """Write a fraction as percent with one decimal, without the sign."""
    return f"{100 * fraction:.1f}"


def round_percent(fraction: float) -> str:
    """Write a fraction as percent for a sentence: 80 %, 99.5 %."""
    return percent(fraction).removesuffix(".0") + " %"


def span(interval: Sequence[float]) -> str:
    """Write an interval of fractions in percent: 41.0 to 52.2, with a dash."""
    low, high = interval
    return f"{percent(low)}\u2013{percent(high)}"


def duration(seconds: float) -> str:
    """Write a time: 42 s, 4.2 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def members(run: MembersRun) -> str:
    """Write the members run: clean / attacked, or once if no image can change it."""
    if run.clean == run.attacked and float(run.clean).is_integer():
        return f"{run.clean:.0f}"
    return f"{run.clean:.2f} / {run.attacked:.2f}"


def points(fraction: float) -> str:
    """Write a difference of accuracies in points, with its sign."""
    return f"{100 * fraction:+.1f}".replace("-", "\u2212").replace("+0.0", "0.0").replace("\u22120.0", "0.0")


def p_value(value: float) -> str:
    """Write a p-value in two digits."""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def sentence(text: str) -> str:
    """Begin with a capital and end with one full stop."""
    text = text.strip().rstrip(".")
    return text[:1].upper() + text[1:] + "." if text else ""


def plural(number: int, noun: str) -> str:
    """Write a number with its noun: 1 check, 2 checks."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
