"""The plot of robustness against size and work."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemble.core.results import EvaluationResult
from sparsemble.report.figures import interval_bars
from sparsemble.report.formatting import count
from sparsemble.report.plot_style import LOOKS, WIDE, Look, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRADEOFF = (
    "Robustness against size and work",
    "Worst-case accuracy with its 95 % interval. Up is more robust, left is smaller (first panel) or less work (second "
    "panel). Rows of equal size are drawn side by side.",
)
"""Title and caption of the plot."""


def robustness_against_size(rows: Sequence[EvaluationResult], looks: Mapping[str, Look] = LOOKS) -> "Figure":
    """Draw worst-case accuracy against non-zero weights and against work, each row labelled."""
    figure, axes = new_figure(WIDE, 3.7, ncols=2, sharey=True)
    panels: dict[str, list[float]] = {
        "non-zero weights": [row.model.nonzeros for row in rows],
        "non-zero MACs, clean image": [row.cost.macs_nonzero for row in rows],
    }
    for ax, (title, sizes) in zip(axes, panels.items(), strict=True):
        logs = [float(np.log10(max(size, 1))) for size in sizes]
        width = max(max(logs) - min(logs), 0.5)
        # Rows of the same size stand beside each other, so that their bars can be told apart.
        for row, x in zip(rows, _spread(logs, 0.032 * width), strict=True):
            _point(ax, x, row, looks[row.name])
        ax.set_xlim(min(logs) - 0.09 * width, max(logs) + 0.09 * width)
        _log_ticks(ax, min(logs) - 0.09 * width, max(logs) + 0.09 * width)
        ax.set_xlabel(f"{title} (log scale)")
        ax.grid(axis="y")
    axes[0].set_ylabel("worst-case accuracy, %")
    _labels(axes[1], rows, looks)
    return figure


def _point(ax: "Axes", x: float, row: EvaluationResult, look: Look) -> None:
    """Draw a row with its interval."""
    low, high = row.interval
    size: dict[str, Any] = {"markersize": 6.5, "elinewidth": 1.3, "zorder": 3}
    if look.strong:
        size = {"markersize": 11, "elinewidth": 2, "zorder": 4}
    bars, height = interval_bars([(low, row.robust_accuracy, high)]), 100 * row.robust_accuracy
    ax.errorbar([x], [height], yerr=bars, fmt=look.marker, color=look.colour, capsize=2.5, **size)


def _labels(ax: "Axes", rows: Sequence[EvaluationResult], looks: Mapping[str, Look]) -> None:
    """Write each row's name and accuracy to the right of the axes, with a hair line to its height."""
    low, high = ax.get_ylim()
    heights = _spread([100 * row.robust_accuracy for row in rows], 0.085 * (high - low))
    for row, height in zip(rows, heights, strict=True):
        look, axes = looks[row.name], ax.get_yaxis_transform()
        line = {"arrowstyle": "-", "color": look.colour, "lw": 0.8, "shrinkA": 2, "shrinkB": 0, "relpos": (0, 0.5)}
        ax.annotate(
            f"{look.label}  {100 * row.robust_accuracy:.1f}",
            xy=(1.0, 100 * row.robust_accuracy),
            xytext=(1.07, height),
            xycoords=axes,
            textcoords=axes,
            arrowprops=line,
            color=look.colour,
            va="center",
            annotation_clip=False,
            fontweight="bold" if look.strong else "normal",
        )


def _log_ticks(ax: "Axes", low: float, high: float) -> None:
    """Put round numbers on an axis of decimal logarithms."""
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [step * 10.0**power for power in range(int(low) - 1, int(high) + 2) for step in steps]
    ticks = [tick for tick in ticks if low <= np.log10(tick) <= high] or [10 ** ((low + high) / 2)]
    labels = [count(tick).replace(".00", "").replace(".0", "") for tick in ticks]
    ax.set_xticks([float(np.log10(tick)) for tick in ticks], labels)


def _spread(values: list[float], gap: float) -> np.ndarray:
    """Move values apart until each two differ by `gap` or more, in order, by the least squares."""
    from scipy.optimize import isotonic_regression

    rank = np.argsort(np.argsort(values, kind="stable"))
    wished = np.sort(values) - gap * np.arange(len(values))
    moved: np.ndarray = isotonic_regression(wished).x[rank] + gap * rank
    return moved
