"""The plots of a report, drawn from plain numbers."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemble.report.formatting import count, duration
from sparsemble.report.plot_style import (
    COLOURS,
    HALF,
    INK,
    MARKERS,
    RULE,
    SCORE_COLOURS,
    SCORE_MARKERS,
    WIDE,
    draw,
    new_figure,
)
from sparsemble.report.summary import SHORT_NAMES
from sparsemble.report.tradeoff_plot import robustness_against_size
from sparsemble.report.trainings import marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERS = 16
"""Sub-models up to which the overlap is also written as numbers."""
MOST_EXAMPLES = 10
CURVES = {
    "held_out_robust": ("held-out robust, %", 100, "linear"),
    "held_out_clean": ("held-out clean, %", 100, "linear"),
    "loss": ("loss (log scale)", 1, "log"),
    "learning_rate": ("learning rate", 1, "linear"),
}
"""What is drawn of each training: title, factor, scale."""


def draw_all(summary: dict[str, Any], figures: dict[str, Any], examples: dict[str, np.ndarray]) -> dict[str, str]:
    """Return every plot that there are numbers for, as SVG text, by name."""
    norm, eps = summary["threat"]["norm"], summary["threat"]["eps"]
    found = {name: figures.get(name) for name in ("curves", "members_run", "layers", "overlap", "training", "classes")}
    shown = examples if len(examples.get("label", ())) else {}
    plots: dict[str, tuple[Any, Callable[[], Figure]]] = {
        "size": (True, lambda: robustness_against_size(summary["rows"])),
        "curves": (found["curves"], lambda: security_curves(figures["curves"], eps, len(found["classes"] or []))),
        "members_run": (found["members_run"], lambda: members_run(figures["members_run"])),
        "examples": (shown, lambda: image_grid(shown, found["classes"], eps if norm == "linf" else 0.0)),
        "layers": (found["layers"], lambda: layer_sparsity(figures["layers"])),
        "overlap": (found["overlap"], lambda: mask_overlap(figures["overlap"], summary["selection"]["ensemble"])),
        "training": (found["training"], lambda: training_curves(figures["training"])),
        "cost": (True, lambda: training_cost(summary["rows"])),
    }
    return {name: draw(plot) for name, (wanted, plot) in plots.items() if wanted}


def security_curves(
    curves: dict[str, Any],
    eps: float,
    classes: int,
    names: Mapping[str, str] = SHORT_NAMES,
    in_255ths: bool | None = None,
) -> "Figure":
    """Accuracy against eps, on a square-root scale that gives small eps room; None: in 255ths where all are such."""
    figure, ax = new_figure(HALF, 3.3)
    radii = np.asarray(curves["eps"], float)
    if in_255ths is None:
        in_255ths = bool(np.allclose(radii * 255, np.round(radii * 255), atol=1e-6)) and radii.max() < 1
    for name, accuracy in curves["rows"].items():
        style = {"color": COLOURS[name], "marker": MARKERS[name], "label": names[name]}
        ax.plot(np.sqrt(radii), 100 * np.asarray(accuracy), **style)
    ax.axvline(eps**0.5, color=INK, lw=0.9, ls=(0, (1, 2)))
    ax.annotate("threat model", (eps**0.5, 103), (3, 0), textcoords="offset points", fontsize=8)
    if classes:
        ax.axhline(100 / classes, color=INK, lw=0.9, ls=(0, (4, 3)))
        ax.annotate("chance", (0, 100 / classes), (0, 3), textcoords="offset points", fontsize=8)
    labels = [f"{255 * r:.4g}" if in_255ths else f"{r:.3g}" for r in radii]
    ax.set_xticks(np.sqrt(radii), labels)
    ax.set_xlabel("eps, in 255ths (square-root scale)" if in_255ths else "eps (square-root scale)")
    ax.set_ylabel("accuracy, %")
    ax.set_ylim(-3, 108)
    ax.set_yticks(range(0, 101, 20))
    ax.grid(axis="y")
    ax.legend(labelcolor="linecolor", loc="upper right", bbox_to_anchor=(1, 0.95))
    return figure


def members_run(counts: dict[str, Any]) -> "Figure":
    """How many images needed 1, 2, .. members, clean and attacked."""
    figure, ax = new_figure(HALF, 3.3)
    run = np.arange(1, counts["members"] + 1)
    looks = {"clean": {"alpha": 0.35}, "attacked": {}}
    for offset, (name, look) in zip((-0.2, 0.2), looks.items(), strict=True):
        images = np.asarray(counts[name], float)
        share = 100 * images / max(images.sum(), 1)
        mean = float((images * run).sum() / max(images.sum(), 1))
        label = f"{name} images: {mean:.2f} members on average"
        bars = ax.bar(run + offset, share, 0.37, color=COLOURS["ensemble_dynamic"], label=label, linewidth=0, **look)
        ax.bar_label(bars, [f"{s:.1f}" if 0 < s < 10 else f"{s:.0f}" for s in share], fontsize=8, padding=2)
    ax.set_xticks(run)
    ax.set_xlabel("members run")
    ax.set_ylabel("share of images, %")
    ax.set_ylim(0, 118)
    ax.set_yticks(range(0, 101, 20))
    ax.grid(axis="y")
    ax.legend(loc="upper right")
    return figure


def layer_sparsity(layers: dict[str, Any]) -> "Figure":
    """Sparsity of each layer, by score (the paper's Figure 5)."""
    names, weights = layers["names"], np.asarray(layers["weights"], float)
    many = len(names) > 12
    figure, ax = new_figure(HALF if not many else WIDE, 3.6)
    x, scores = np.arange(len(names)), layers["sparsity"]
    for i, (score, values) in enumerate(scores.items()):
        shift = (i - (len(scores) - 1) / 2) * 0.7 / max(len(scores), 1)
        colour, marker = SCORE_COLOURS[i % len(SCORE_COLOURS)], SCORE_MARKERS[i % len(SCORE_MARKERS)]
        label = score.upper() if len(score) <= 4 else score
        ax.plot(x + shift, 100 * np.asarray(values), ls="", marker=marker, ms=5, color=colour, label=label)
    overall = float(np.mean([np.average(values, weights=weights) for values in scores.values()]))
    ax.axhline(100 * overall, color=INK, lw=0.9, ls=(0, (4, 3)))
    for edge in x[:-1] + 0.5:
        ax.axvline(edge, color=RULE, lw=0.5, alpha=0.35)
    ticks = [f"{name} ({count(n)})" for name, n in zip(names, weights, strict=True)]
    ax.set_xticks(
        x,
        ticks,
        rotation=90 if many else 40,
        ha="center" if many else "right",
        rotation_mode="anchor" if not many else None,
        fontsize=8,
    )
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylabel("sparsity, %")
    ax.grid(axis="y")
    figure.legend(ncols=max(len(scores), 1), loc="outside upper left", handletextpad=0.1, columnspacing=1.2)
    return figure


def mask_overlap(overlap: dict[str, Any], ensemble: list[str]) -> "Figure":
    """Jaccard overlap of the kept weights of all pairs of sub-models; members of the ensemble stand out."""
    names, values = overlap["names"], np.asarray(overlap["jaccard"], float)
    figure, ax = new_figure(HALF, 3.6)
    below = values[np.tril_indices(len(names), -1)]
    low, high = (float(below.min()), float(below.max())) if below.size else (0.0, 1.0)
    for i in range(1, len(names)):
        for j in range(i):
            depth = (values[i, j] - low) / (high - low) if high > low else 0.5
            text = f"{100 * values[i, j]:.0f}" if len(names) <= MOST_NUMBERS else ""
            shaded(ax, j, i, depth, text)
    ax.set_xlim(-0.5, len(names) - 1.5)
    ax.set_ylim(len(names) - 0.5, 0.5)
    ax.set_xticks(range(len(names) - 1), names[:-1], rotation=90)
    ax.set_yticks(range(1, len(names)), names[1:])
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        if label.get_text() in ensemble:
            label.set(color=COLOURS["ensemble_dynamic"], fontweight="bold")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure


def shaded(ax: "Axes", x: float, y: float, depth: float, text: str) -> None:
    """Draw a cell of a matrix, the darker the nearer `depth` is to 1, with a number in it."""
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, color=COLOURS["harp"], alpha=0.08 + 0.87 * depth, lw=0))
    if text:
        colour = "#ffffff" if depth > 0.5 else INK
        ax.text(x, y, text, ha="center", va="center_baseline", fontsize=7.5, color=colour)


def training_curves(training: dict[str, Any]) -> "Figure":
    """Accuracy on held-out images, loss and rate over epochs; dotted where training went back."""
    figure, axes = new_figure(WIDE, 2.9, columns=len(CURVES))
    for ax, (key, (title, scale, yscale)) in zip(axes, CURVES.items(), strict=True):
        for name, records in training.items():
            points = [(record["epoch"], scale * record[key]) for record in records if record[key] is not None]
            epochs, values = zip(*points, strict=True) if points else ((), ())
            ax.plot(
                epochs, values, color=COLOURS[name], label=SHORT_NAMES[name], marker="o" if len(points) == 1 else ""
            )
            for epoch in marks(records):
                ax.axvline(epoch, color=COLOURS[name], linestyle=":", linewidth=1)
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid()
        ax.set_yscale(yscale)
        if yscale == "log":
            ax.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.yaxis.set_minor_formatter(lambda value, _: "")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=max(len(labels), 1), loc="outside upper left", labelcolor="linecolor")
    return figure


def training_cost(rows: list[dict[str, Any]]) -> "Figure":
    """Forward and backward passes that each row was made from."""
    figure, ax = new_figure(HALF, 2.4)
    passes = [row["training_passes"] for row in rows]
    bars = ax.barh(range(len(rows)), passes, 0.62, color=[COLOURS[row["name"]] for row in rows])
    ax.bar_label(
        bars, [f"{count(row['training_passes'])}, {duration(row['seconds'])}" for row in rows], padding=4, fontsize=8.5
    )
    ax.set_yticks(range(len(rows)), [SHORT_NAMES[row["name"]] for row in rows])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.4 * max(*passes, 1))
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return figure


def image_grid(examples: dict[str, np.ndarray], classes: list[str] | None, eps: float) -> "Figure":
    """Clean images, changes and adversarial images, with label and answers; eps 0 scales changes by the largest."""
    clean, adversarial = examples["clean"][:MOST_EXAMPLES], examples["adversarial"][:MOST_EXAMPLES]
    delta = (adversarial - clean).mean(1)
    scale = eps or float(np.abs(delta).max()) or 1.0
    figure, ax = new_figure(WIDE, 0.9 + 2.7 * WIDE / (1.06 * MOST_EXAMPLES + 1) / 0.92 * 1.0)
    shown = ("label", "clean_prediction", "adversarial_prediction")
    for j in range(len(clean)):
        indices = [int(examples[key][j]) for key in shown]
        label, before, after = [str(index) if classes is None else classes[index] for index in indices]
        _picture(ax, clean[j], j, 0)
        ax.imshow(delta[j], cmap="RdBu", vmin=-scale, vmax=scale, interpolation="none", extent=_place(j, 1))
        _picture(ax, adversarial[j], j, 2)
        _verdict(ax, f"{label} \u2192 {before}", j, 0, before != label)
        _verdict(ax, f"{label} \u2192 {after}", j, 2, after != label)
    for row, name in enumerate(("clean", "change", "adversarial")):
        ax.text(-0.12, -row * 1.3 - 0.5, name, ha="right", va="center", fontsize=9)
    ax.set_xlim(-0.9, 1.06 * max(len(clean), MOST_EXAMPLES))
    ax.set_ylim(-3.65, 0.3)
    ax.set_aspect("equal")
    ax.axis("off")
    return figure


def _place(column: int, row: int) -> tuple[float, float, float, float]:
    left, top = 1.06 * column, -1.3 * row
    return left, left + 1, top - 1, top


def _picture(ax: "Axes", image: np.ndarray, column: int, row: int) -> None:
    grey = len(image) == 1
    shown = image[0] if grey else np.moveaxis(image, 0, -1)
    ax.imshow(shown, cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="none", extent=_place(column, row))


def _verdict(ax: "Axes", text: str, column: int, row: int, wrong: bool) -> None:
    """Write label and answer above an image; wrong answers stand out."""
    left, _, _, top = _place(column, row)
    style: dict[str, Any] = {"color": COLOURS["ensemble_dynamic"], "fontweight": "bold"} if wrong else {"color": INK}
    ax.text(left + 0.5, top + 0.05, text, ha="center", va="bottom", fontsize=8.5, **style)
