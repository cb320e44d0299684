"""The headline of a run: what the ensemble keeps, whether that is more than its parent, and more than chance."""

from sparsemble.core.results import RunSummary
from sparsemble.report.formatting import percent, plural, points, round_percent

HEADLINE_ROW = "ensemble_dynamic"
"""The row that the headline and the checks are about."""


def headline(summary: RunSummary) -> tuple[str, str, str]:
    """Return the result in two sentences; the middle part is the number."""
    result = summary.row(HEADLINE_ROW)
    low, high = result.interval
    return (
        f"An ensemble of {plural(len(summary.selection.ensemble), 'sparse sub-model')}, "
        f"{round_percent(result.model.sparsity)} sparse in all, keeps ",
        f"{percent(result.robust_accuracy)} %",
        f" accuracy in the worst case over {plural(len(result.attacks), 'attack')} (95 % interval {percent(low)} to "
        f"{percent(high)}){_verdict(summary)}. It runs {result.members_run.clean:.2f} members for a clean image and "
        f"{result.members_run.attacked:.2f} for an attacked one.",
    )


def _verdict(summary: RunSummary) -> str:
    """Return the part of the headline on chance and on the parent, with its colon; empty where neither is known."""
    parts = ["no better than chance"] if _is_useless(summary) else []
    if test := summary.against_parent:
        low, high = test.interval
        interval = f"95 % interval {points(low)} to {points(high)}"
        if test.contains_zero:
            parts.append(f"no difference from its dense parent shown ({points(test.difference)} points, {interval})")
        else:
            kind = "worse" if test.difference < 0 else "better"
            parts.append(f"{percent(abs(test.difference))} points {kind} than its dense parent ({interval})")
    return f": {', '.join(parts)}" if parts else ""


def _is_useless(summary: RunSummary) -> bool:
    result, chance = summary.row(HEADLINE_ROW), summary.chance
    accuracies = (result.clean_accuracy, result.robust_accuracy)
    return chance is not None and not all(chance.is_beaten(accuracy) for accuracy in accuracies)


def useless(summary: RunSummary) -> list[str]:
    """Return an alarm where the ensemble is no better than predictions without skill."""
    if not _is_useless(summary):
        return []
    result = summary.row(HEADLINE_ROW)
    return [
        f"No better than chance: the ensemble classifies {percent(result.clean_accuracy)} % of the test images "
        f"correctly and {percent(result.robust_accuracy)} % in the worst case, where {summary.chance}."
    ]


def comparison(summary: RunSummary) -> str:
    """Return what the other rows keep, to compare the headline with."""
    accuracies = {row.name: percent(row.robust_accuracy) + " %" for row in summary.rows}
    return (
        f"In its own worst case the dense parent keeps {accuracies['dense']}, one HARP model of the same sparsity "
        f"{accuracies['harp']}, a small dense network of the same work {accuracies['small_dense']} and the best "
        f"single sub-model {accuracies['best_member']}. This is one seed: differences within the intervals may be "
        "chance."
    )
