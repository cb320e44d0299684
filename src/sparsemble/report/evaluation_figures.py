"""The plots of an evaluation, drawn from its numbers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemble.report.evaluation_tables import KINDS, lines
from sparsemble.report.evaluation_text import distance, in_255ths
from sparsemble.report.figures import image_grid, security_curves, shaded
from sparsemble.report.formatting import count, percent
from sparsemble.report.plot_style import COLOURS, HALF, INK, MARKERS, SCORE_COLOURS, WIDE, bars, draw, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 40


def draw_evaluation(result: dict[str, Any], examples: dict[str, np.ndarray]) -> dict[str, str]:
    """Return every plot that there are numbers for, as SVG text, by name."""
    threat = result["threat"]
    minimum = {label: a["minimum_distances"] for label, a in result["attacks"].items() if "minimum_distances" in a}
    found = any(value is not None for values in minimum.values() for value in values)
    shown = examples if len(examples.get("label", ())) else {}
    plots: dict[str, tuple[Any, Callable[[], Figure]]] = {
        "attacks": (True, lambda: accuracy_by_attack(result)),
        "curve": (result["security_curve"], lambda: curve(result)),
        "distances": (found, lambda: minimum_distances(result, minimum)),
        "members": (result["members"], lambda: transfer(result["members"])),
        "work": (result["target"]["stopping"] and result["members"], lambda: members_run(result)),
        "examples": (shown, lambda: image_grid(shown, None, threat["eps"] if threat["norm"] == "linf" else 0.0)),
    }
    return {name: draw(plot) for name, (wanted, plot) in plots.items() if wanted}


def accuracy_by_attack(result: dict[str, Any]) -> "Figure":
    """Accuracy under each attack with its interval, weakest attack first, and the passes it took."""
    of_table = lines(result)
    figure, ax = new_figure(WIDE, 0.75 + 0.27 * len(of_table))
    for y, line in enumerate(of_table):
        row = KINDS[line.kind]
        strong = line.kind == "worst case"
        style: dict[str, Any] = {"markersize": 11 if strong else 6, "elinewidth": 2 if strong else 1.3, "capsize": 2.5}
        ax.errorbar(
            [100 * line.accuracy],
            [y],
            xerr=bars(line.accuracy, line.interval),
            fmt=MARKERS[row],
            color=COLOURS[row],
            **style,
        )
        beside = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8.5, "ha": "right"}
        ax.text(1.055, y, percent(line.accuracy), fontweight="bold" if strong else "normal", **beside)
        if line.kind in ("attack", "ensemble attack"):
            passes = sum(result["attacks"][line.label]["passes"].values())
            ax.text(1.175, y, f"{count(passes)} passes", **beside)
    ax.set_yticks(range(len(of_table)), [line.label for line in of_table])
    for label, line in zip(ax.get_yticklabels(), of_table, strict=True):
        label.set(color=COLOURS[KINDS[line.kind]], fontweight="bold" if line.kind == "worst case" else "normal")
    ax.axvline(
        100 * result["worst_case"]["accuracy"], color=COLOURS["ensemble_dynamic"], lw=0.9, ls=(0, (1, 2)), zorder=1
    )
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(of_table) - 0.4, -0.6)
    ax.set_xlabel("accuracy, %")
    ax.grid(axis="x")
    return figure


def members_run(result: dict[str, Any]) -> "Figure":
    """Mean number of members run under each attack, the cheapest first."""
    runs = {label: float(np.mean(attack["members_run"])) for label, attack in result["attacks"].items()}
    labels = sorted(runs, key=runs.__getitem__)
    figure, ax = new_figure(HALF, 0.9 + 0.24 * len(labels))
    colours = [COLOURS[KINDS[result["attacks"][label]["kind"]]] for label in labels]
    drawn = ax.barh(range(len(labels)), [runs[label] for label in labels], 0.62, color=colours)
    ax.bar_label(drawn, [f"{runs[label]:.2f}" for label in labels], padding=4, fontsize=8.5)
    ax.axvline(result["members_run"]["clean"], color=INK, lw=0.9, ls=(0, (1, 2)))
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1.1 * result["target"]["members"])
    ax.set_xticks(range(result["target"]["members"] + 1))
    ax.set_xlabel(f"members run, of {result['target']['members']}")
    return figure


def curve(result: dict[str, Any]) -> "Figure":
    """Accuracy against eps."""
    found = result["security_curve"]
    curves = {"eps": found["eps"], "rows": {"ensemble_dynamic": found["accuracy"]}}
    names = {"ensemble_dynamic": f"under {found['attack']}"}
    eps, classes = result["threat"]["eps"], result["data"]["classes"]
    return security_curves(curves, eps, classes, names, True if in_255ths(result) else None)


def minimum_distances(result: dict[str, Any], found: dict[str, list[float | None]]) -> "Figure":
    """How far the nearest adversarial image lies, image by image; those that are wrong when clean are left out."""
    scale = 255 if in_255ths(result) else 1
    right = np.asarray(result["clean_outcomes"], bool)
    values = {label: np.asarray(of_label, float)[right] for label, of_label in found.items()}
    everything = np.concatenate([scale * v[np.isfinite(v)] for v in values.values()])
    figure, ax = new_figure(HALF, 3.3)
    edges = np.linspace(0, float(everything.max(initial=0)) or 1.0, BINS + 1)
    for i, (label, of_label) in enumerate(values.items()):
        broken = np.isfinite(of_label)
        colour = SCORE_COLOURS[i % len(SCORE_COLOURS)]
        never = f", {int((~broken).sum())} never broken" if not broken.all() else ""
        median = distance(result["attacks"][label]["median_distance"], result)
        style: dict[str, Any] = {"histtype": "stepfilled", "lw": 1.4, "edgecolor": colour, "facecolor": (colour, 0.18)}
        ax.hist(scale * of_label[broken], edges, label=f"{label}: median {median}{never}", **style)
    ax.axvline(scale * result["threat"]["eps"], color=INK, lw=0.9, ls=(0, (1, 2)))
    top = ax.get_ylim()[1]
    ax.annotate("threat model", (scale * result["threat"]["eps"], top), (3, 0), textcoords="offset points", fontsize=8)
    unit = ", in 255ths" if scale == 255 else ""
    ax.set_xlabel(f"{result['threat']['norm']} distance of the nearest adversarial image{unit}")
    ax.set_ylabel("images")
    ax.grid(axis="y")
    figure.legend(loc="outside upper left")
    return figure


def transfer(members: dict[str, Any]) -> "Figure":
    """Accuracy of each member on clean images and on images crafted on each member."""
    names = members["names"]
    values = np.asarray([members["clean"], *members["transfer"]], float)
    figure, ax = new_figure(HALF, min(1.4 + 0.42 * len(names), 5.0))
    low, high = float(values.min()), float(values.max())
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            depth = (value - low) / (high - low) if high > low else 0.5
            shaded(ax, j, i + 0.25 * (i > 0), depth, percent(value))
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylim(len(names) + 0.75, -0.5)
    ax.set_xticks(range(len(names)), names, rotation=0 if len(names) <= 5 else 90)
    ax.set_yticks([0, *(i + 1.25 for i in range(len(names)))], ["clean images", *(f"made on {n}" for n in names)])
    ax.set_xlabel("answered by")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure
