"""The plots of a report, as SVG; drawn from plain numbers, the same bytes each time."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemble.report.summary import SHORT_NAMES
from sparsemble.report.tables import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "dense": "#7f7f7f",
    "small_dense": "#b8860b",
    "harp": "#0072b2",
    "best_member": "#56b4e9",
    "team_static": "#e69f00",
    "team_dynamic": "#d55e00",
    "team": "#d55e00",
}
"""One colour a row in every plot, apart for colour-blind eyes (Okabe & Ito)."""
SCORE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK = "#80868b"
"""Legible on white and on black."""
MARKERS = {"dense": "s", "small_dense": "v", "harp": "D", "best_member": "o", "team_static": "P", "team_dynamic": "*"}

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sparsemble",  # the same identifiers each time
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def draw_all(summary: dict[str, Any], figures: dict[str, Any], examples: dict[str, np.ndarray]) -> dict[str, str]:
    """Return every figure that there are numbers for, as SVG text, by name."""
    plots: dict[str, tuple[bool, Callable[[], Figure]]] = {
        "robustness_size": (True, lambda: robustness_against_size(summary)),
        "curves": (bool(figures["curves"]), lambda: security_curves(figures["curves"], summary["threat"]["eps"])),
        "members_run": (bool(figures["members_run"]), lambda: members_run(figures["members_run"])),
        "layers": (bool(figures["layers"]), lambda: layer_sparsity(figures["layers"])),
        "overlap": (bool(figures["overlap"]), lambda: mask_overlap(figures["overlap"])),
        "training": (bool(figures["training"]), lambda: training_curves(figures["training"])),
        "examples": (bool(examples), lambda: image_grid(examples, figures["classes"], summary["threat"]["eps"])),
    }
    from matplotlib import rc_context

    with rc_context(STYLE):
        return {name: to_svg(draw()) for name, (wanted, draw) in plots.items() if wanted}


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple["Figure", Any]:
    """Make a figure without touching global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def to_svg(figure: "Figure") -> str:
    """Write a figure as SVG, without a date."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": "sparsemble"})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def robustness_against_size(summary: dict[str, Any]) -> "Figure":
    """Worst-case accuracy against the bytes of the stored model."""
    figure, ax = new_figure(6.4, 3.6)
    for row in summary["rows"]:
        low, high = row["worst_case_interval"]
        value, name = row["worst_case"], row["name"]
        spread = [[100 * (value - low)], [100 * (high - value)]]
        # The two rows of the team share a file: a small shift keeps their bars apart.
        x = row["bytes"] / 1000 * (1.03 if name == "team_dynamic" else 0.97 if name == "team_static" else 1)
        marker = {"fmt": MARKERS[name], "markersize": 9 if name == "team_dynamic" else 6, "capsize": 3}
        label = f"{SHORT_NAMES[name]} ({count(row['nonzeros'])} weights)"
        ax.errorbar(x, 100 * value, yerr=spread, color=COLOURS[name], label=label, elinewidth=1.2, **marker)
    ax.set_xscale("log")
    ax.set_xlabel("bytes on disk, kB (log scale)")
    ax.set_ylabel("worst-case accuracy, %")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.xaxis.set_minor_formatter(lambda v, _: f"{v:g}" if v in (20, 50, 200, 500, 2000, 5000) else "")
    ax.grid(axis="y", alpha=0.25)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), labelspacing=0.9)
    return figure


def security_curves(curves: dict[str, Any], eps: float) -> "Figure":
    """Accuracy against eps."""
    figure, ax = new_figure(6.4, 3.4)
    for row, accuracy in curves["rows"].items():
        colour = COLOURS[row]
        ax.plot(curves["eps"], [100 * a for a in accuracy], "o-", ms=3.5, lw=1.6, color=colour, label=SHORT_NAMES[row])
    ax.axvline(eps, color=INK, lw=0.8, ls=":")
    ax.annotate(" eps of the threat", (eps, 101), color=INK, fontsize=8)
    ax.set_xlabel("eps")
    ax.set_ylabel("accuracy, %")
    ax.set_ylim(-2, 106)
    ax.grid(axis="y", alpha=0.25)
    ax.legend()
    return figure


def members_run(counts: dict[str, Any]) -> "Figure":
    """How many images needed 1, 2, .. members."""
    figure, ax = new_figure(5.2, 3.0)
    x = np.arange(1, counts["members"] + 1)
    for offset, name, colour in ((-0.19, "clean", COLOURS["harp"]), (0.19, "attacked", COLOURS["team_dynamic"])):
        share = 100 * np.asarray(counts[name]) / max(sum(counts[name]), 1)
        bars = ax.bar(x + offset, share, 0.36, color=colour, label=f"{name} images")
        ax.bar_label(bars, fmt="%.0f", color=INK, fontsize=8, padding=2)
    ax.set_xticks(x)
    ax.set_xlabel("members run")
    ax.set_ylabel("share of images, %")
    ax.margins(y=0.12)
    ax.legend()
    return figure


def layer_sparsity(layers: dict[str, Any]) -> "Figure":
    """Sparsity of each layer, by score (the paper's Figure 5)."""
    figure, ax = new_figure(6.4, 3.4)
    x, total = np.arange(len(layers["names"])), len(layers["sparsity"])
    for i, (score, values) in enumerate(layers["sparsity"].items()):
        width = 0.8 / total
        shift = (i - (total - 1) / 2) * width
        colour = SCORE_COLOURS[i % len(SCORE_COLOURS)]
        ax.bar(x + shift, 100 * np.asarray(values), width * 0.92, color=colour, label=score.upper())
    ticks = [
        f"{name.removeprefix('body.')}\n{count(n)}" for name, n in zip(layers["names"], layers["weights"], strict=True)
    ]
    many = len(ticks) > 10
    ax.set_xticks(x, ticks, rotation=90 if many else 30, ha="center" if many else "right", fontsize=7.5)
    ax.set_ylabel("sparsity, %")
    lowest = min(min(values) for values in layers["sparsity"].values())
    ax.set_ylim(max(0, 100 * lowest - 12), 100)
    ax.grid(axis="y", alpha=0.25)
    ax.legend(ncols=total, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def mask_overlap(overlap: dict[str, Any]) -> "Figure":
    """Jaccard overlap of the kept weights of all pairs of sub-models."""
    names, values = overlap["names"], np.asarray(overlap["jaccard"])
    side = 1.6 + 0.36 * len(names)
    figure, ax = new_figure(side + 0.6, side)
    ax.imshow(values, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 24:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                colour = "white" if value > 0.55 else "#333333"
                ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure


def training_curves(training: dict[str, Any]) -> "Figure":
    """Held-out robust and clean accuracy, and loss, over epochs."""
    figure, axes = new_figure(8.4, 3.0, columns=3)
    for row, records in training.items():
        colour, name = COLOURS[row], SHORT_NAMES[row]
        for ax, key, scale in zip(axes, ("held_out_robust", "held_out_clean", "loss"), (100, 100, 1), strict=True):
            points = [(r["epoch"], scale * r[key]) for r in records if r[key] is not None]
            if points:
                ax.plot(*zip(*points, strict=True), color=colour, lw=1.4, label=name)
    titles = ("held-out robust accuracy, %", "held-out clean accuracy, %", "training loss (log scale)")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, color=INK)
        ax.set_xlabel("epoch")
        ax.grid(alpha=0.25)
    axes[2].set_yscale("log")
    axes[0].legend(loc="lower right")
    return figure


def image_grid(examples: dict[str, np.ndarray], classes: list[str], eps: float) -> "Figure":
    """Clean images, perturbations and adversarial images, with what the team says."""
    clean, adversarial = examples["clean"], examples["adversarial"]
    figure, axes = new_figure(0.95 * len(clean) + 0.6, 3.5, columns=len(clean), rows=3, squeeze=False)
    for j in range(len(clean)):
        delta = (adversarial[j] - clean[j]).mean(0) / max(eps, 1e-9)
        _show(axes[0, j], clean[j])
        axes[1, j].imshow(delta, cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
        _show(axes[2, j], adversarial[j])
        label, before, after = (int(examples[k][j]) for k in ("label", "clean_prediction", "adversarial_prediction"))
        axes[0, j].set_title(f"{classes[label]} \u2192 {classes[before]}", fontsize=8.5, color=INK)
        colour = COLOURS["team_dynamic"] if after != label else INK
        axes[2, j].set_title(f"\u2192 {classes[after]}", fontsize=8.5, color=colour)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    for ax, name in zip(axes[:, 0], ("clean", "perturbation", "adversarial"), strict=True):
        ax.set_ylabel(name, color=INK)
    return figure


def _show(ax: "Axes", image: np.ndarray) -> None:
    grey = len(image) == 1
    ax.imshow(image[0] if grey else image.transpose(1, 2, 0), cmap="gray" if grey else None, vmin=0, vmax=1)
