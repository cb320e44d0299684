"""The plot of robustness against size and work."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparsemble.report.formatting import count
from sparsemble.report.plot_style import COLOURS, MARKERS, WIDE, bars, new_figure, spread
from sparsemble.report.summary import SHORT_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Look(NamedTuple):
    """How a row is drawn."""

    colour: str
    marker: str
    label: str
    strong: bool = False


LOOKS = {name: Look(COLOURS[name], MARKERS[name], SHORT_NAMES[name], name == "ensemble_dynamic") for name in MARKERS}
"""Of the rows of a run's report."""


def robustness_against_size(rows: list[dict[str, Any]], looks: Mapping[str, Look] = LOOKS) -> "Figure":
    """Worst-case accuracy against non-zero weights and against work, each row labelled."""
    figure, axes = new_figure(WIDE, 3.7, columns=2, sharey=True)
    titles = ("non-zero weights stored", "non-zero multiply-accumulates a clean image")
    for ax, key, title in zip(axes, ("nonzeros", "macs_nonzero"), titles, strict=True):
        logs = [float(np.log10(max(row[key], 1))) for row in rows]
        width = max(max(logs) - min(logs), 0.5)
        # Rows of the same size stand beside each other, so that their bars can be told apart.
        for row, log in zip(rows, spread(logs, 0.032 * width), strict=True):
            _point(ax, row, looks[row["name"]], log)
        ax.set_xlim(min(logs) - 0.09 * width, max(logs) + 0.09 * width)
        _log_ticks(ax, min(logs) - 0.09 * width, max(logs) + 0.09 * width)
        ax.set_xlabel(f"{title} (log scale)")
        ax.grid(axis="y")
    axes[0].set_ylabel("worst-case accuracy, %")
    low, high = axes[0].get_ylim()
    places = spread([100 * row["worst_case"] for row in rows], 0.085 * (high - low))
    for row, place in zip(rows, places, strict=True):
        look = looks[row["name"]]
        text = f"{look.label}  {100 * row['worst_case']:.1f}"
        bold = "bold" if look.strong else "normal"
        shown = {"color": look.colour, "va": "center", "annotation_clip": False, "fontweight": bold}
        where = {"xy": (1.0, 100 * row["worst_case"]), "xytext": (1.07, place)}
        line = {"arrowstyle": "-", "color": look.colour, "lw": 0.8, "shrinkA": 2, "shrinkB": 0, "relpos": (0, 0.5)}
        axes[1].annotate(text, **where, xycoords=axes[1].get_yaxis_transform(), arrowprops=line, **shown)
    return figure


def _point(ax: "Axes", row: dict[str, Any], look: Look, x: float) -> None:
    """Draw a row with its interval, and a hair line to the right edge that its label continues."""
    style: dict[str, Any] = {
        "fmt": look.marker,
        "markersize": 11 if look.strong else 6.5,
        "elinewidth": 2 if look.strong else 1.3,
        "capsize": 2.5,
    }
    yerr = bars(row["worst_case"], row["worst_case_interval"])
    ax.errorbar([x], [100 * row["worst_case"]], yerr=yerr, color=look.colour, zorder=4 if look.strong else 3, **style)


def _log_ticks(ax: "Axes", low: float, high: float) -> None:
    """Put round numbers on an axis of decimal logarithms."""
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [step * 10.0**power for power in range(int(low) - 1, int(high) + 2) for step in steps]
    ticks = [tick for tick in ticks if low <= np.log10(tick) <= high] or [10 ** ((low + high) / 2)]
    ax.set_xticks(
        [float(np.log10(tick)) for tick in ticks],
        [f"{count(tick)}".replace(".00", "").replace(".0", "") for tick in ticks],
    )
