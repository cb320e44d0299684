"""The plots of the pages, each drawn from typed results."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemble.core.results import (
    EvaluationResult,
    Examples,
    LayerSparsity,
    MaskOverlap,
    MembersTable,
    SecurityCurve,
    TrainingRecord,
)
from sparsemble.core.results.corruptions import FAMILIES, SEVERITIES
from sparsemble.report.descriptions import distance, in_255ths
from sparsemble.report.formatting import count, percent
from sparsemble.report.page import Plot
from sparsemble.report.plot_style import HALF, INK, LOOKS, RULE, SCORE_COLOURS, WIDE, Look, new_figure
from sparsemble.report.table import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORE_MARKERS = ("o", "s", "D", "^", "v", "P")
MOST_NUMBERS = 16
"""Sub-models up to which the overlap is also written as numbers."""
MOST_EXAMPLES = 10
BINS = 40
DOTTED, DASHED = (0, (1, 2)), (0, (4, 3))
ACCENT = LOOKS["ensemble_dynamic"].colour


def interval_bars(intervals: Sequence[Interval]) -> list[list[float]]:
    """Return error bars in percent: down and up; at 0 and 1 an end may lie on the wrong side by rounding."""
    down = [max(0.0, 100 * (value - low)) for low, value, _ in intervals]
    return [down, [max(0.0, 100 * (high - value)) for _, value, high in intervals]]


def security_curves(curves: Sequence[tuple[Look, SecurityCurve]], result: EvaluationResult) -> "Figure":
    """Draw accuracy against eps, the same for all curves, on a square-root scale that gives small eps room."""
    figure, ax = new_figure(HALF, 3.3)
    eps, classes = result.threat.eps, result.data.classes
    radii = np.asarray(curves[0][1].eps, float)
    whole = bool(np.allclose(radii * 255, np.round(radii * 255), atol=1e-6)) and radii.max() < 1
    scaled = in_255ths(result.threat) or whole
    for look, curve in curves:
        x, y = np.sqrt(np.asarray(curve.eps, float)), 100 * np.asarray(curve.accuracy)
        ax.plot(x, y, color=look.colour, marker=look.marker, label=look.label)
    _mark_threat_model(ax, eps**0.5, 103)
    ax.axhline(100 / classes, color=INK, lw=0.9, ls=DASHED)
    ax.annotate("chance", (0, 100 / classes), (0, 3), textcoords="offset points", fontsize=8)
    ax.set_xticks(np.sqrt(radii), [f"{255 * r:.4g}" if scaled else f"{r:.3g}" for r in radii])
    ax.set(xlabel=f"eps{', in 255ths' if scaled else ''} (square-root scale)", ylabel="accuracy, %")
    ax.set(ylim=(-3, 108), yticks=range(0, 101, 20))
    ax.grid(axis="y")
    ax.legend(labelcolor="linecolor", loc="upper right", bbox_to_anchor=(1, 0.95))
    return figure


def _mark_threat_model(ax: "Axes", eps: float, height: float) -> None:
    ax.axvline(eps, color=INK, lw=0.9, ls=DOTTED)
    ax.annotate("threat model", (eps, height), (3, 0), textcoords="offset points", fontsize=8)


def in_threat_norm(result: EvaluationResult) -> list[tuple[str, tuple[float | None, ...]]]:
    """Return the label and the minimum distances of each attack that measured them in the norm of the threat model."""
    return [
        (attack.label, attack.minimum_distances)
        for attack in result.attacks
        if attack.minimum_distances is not None and attack.minimum_norm in (None, result.threat.norm)
    ]


def minimum_distances(result: EvaluationResult) -> "Figure":
    """Draw the distance of the nearest adversarial image; images that are misclassified when clean are left out."""
    scale = 255 if in_255ths(result.threat) else 1
    correct = np.asarray(result.clean_correct, bool)
    distances = {label: np.asarray(distances, float)[correct] for label, distances in in_threat_norm(result)}
    finite_distances = np.concatenate([scale * values[np.isfinite(values)] for values in distances.values()])
    figure, ax = new_figure(HALF, 3.3)
    edges = np.linspace(0, float(finite_distances.max(initial=0)) or 1.0, BINS + 1)
    for i, (label, values) in enumerate(distances.items()):
        finite = np.isfinite(values)
        colour = SCORE_COLOURS[i % len(SCORE_COLOURS)]
        never = "" if finite.all() else f", {int((~finite).sum())} never misclassified"
        median = distance(result.attack(label).median_distance, result.threat)
        style: dict[str, Any] = {"histtype": "stepfilled", "lw": 1.4, "edgecolor": colour, "facecolor": (colour, 0.18)}
        ax.hist(scale * values[finite], edges, label=f"{label}: median {median}{never}", **style)
    _mark_threat_model(ax, scale * result.threat.eps, ax.get_ylim()[1])
    unit = ", in 255ths" if scale > 1 else ""
    ax.set(xlabel=f"{result.threat.norm} distance of the nearest adversarial image{unit}", ylabel="images")
    ax.grid(axis="y")
    figure.legend(loc="outside upper left")
    return figure


def corruptions_plot(result: EvaluationResult) -> Plot:
    """Return accuracy against the severity of common corruptions, by family, as a plot of a page."""
    caption = "Mean accuracy over the corruptions of each family, and over all fifteen; severity 0 is the clean image."
    return Plot("corruptions", "Accuracy under common corruptions", caption, lambda: _corruptions(result))


def _corruptions(result: EvaluationResult) -> "Figure":
    record = result.corruptions
    assert record is not None
    figure, ax = new_figure(HALF, 3.3)
    severities, clean = range(SEVERITIES + 1), result.clean_accuracy
    for (family, names), colour, marker in zip(FAMILIES.items(), SCORE_COLOURS, SCORE_MARKERS, strict=False):
        accuracy = 100 * np.asarray([clean, *record.by_severity(names)])
        ax.plot(severities, accuracy, color=colour, marker=marker, label=family, lw=1.1)
    accuracy = 100 * np.asarray([clean, *record.by_severity()])
    ax.plot(severities, accuracy, color=ACCENT, lw=2.4, label=f"all: {percent(record.mean)} % on average")
    ax.axhline(100 / result.data.classes, color=INK, lw=0.9, ls=DASHED)
    ax.annotate("chance", (0, 100 / result.data.classes), (0, 3), textcoords="offset points", fontsize=8)
    ax.set(xlabel="severity", ylabel="accuracy, %", xticks=severities, ylim=(-3, 108), yticks=range(0, 101, 20))
    ax.grid(axis="y")
    figure.legend(labelcolor="linecolor", loc="outside upper left", ncols=3)
    return figure


def members_run_plot(result: EvaluationResult) -> Plot:
    """Return how many images needed 1, 2, .. members, clean and attacked, as a plot of a page."""
    caption = "On clean images and under the attack that costs the most members, of those tried."
    draw = (lambda: _members_run(result)) if result.members_run.clean_counts else None
    return Plot("members_run", "Members run an image", caption, draw)


def _members_run(result: EvaluationResult) -> "Figure":
    figure, ax = new_figure(HALF, 3.3)
    counts = {"clean": result.members_run.clean_counts, "attacked": result.members_run.attacked_counts}
    members = np.arange(1, len(counts["clean"]) + 1)
    for offset, alpha, (name, images) in zip((-0.2, 0.2), (0.35, 1.0), counts.items(), strict=True):
        fractions = 100 * np.asarray(images, float) / max(sum(images), 1)
        mean = float((np.asarray(images) * members).sum() / max(sum(images), 1))
        label = f"{name} images: {mean:.2f} members on average"
        bars = ax.bar(members + offset, fractions, 0.37, color=ACCENT, label=label, linewidth=0, alpha=alpha)
        ax.bar_label(bars, [f"{f:.1f}" if 0 < f < 10 else f"{f:.0f}" for f in fractions], fontsize=8, padding=2)
    ax.set(xticks=members, xlabel="members run", ylabel="fraction of the images, %")
    ax.set(ylim=(0, 118), yticks=range(0, 101, 20))
    ax.grid(axis="y")
    ax.legend(loc="upper right")
    return figure


def transfer(members: MembersTable) -> "Figure":
    """Draw accuracy of each member on clean images and on images made against each member."""
    names = members.names
    values = np.asarray([members.clean, *members.transfer], float)
    figure, ax = new_figure(HALF, min(1.4 + 0.42 * len(names), 5.0))
    _matrix(ax, {(j, i + 0.25 * (i > 0)): float(v) for i, row in enumerate(values) for j, v in enumerate(row)}, percent)
    ax.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) + 0.75, -0.5), xlabel="classified by")
    ax.set_xticks(range(len(names)), names, rotation=0 if len(names) <= 5 else 90)
    against = [f"against {name}" for name in names]
    ax.set_yticks([0, *(i + 1.25 for i in range(len(names)))], ["clean images", *against])
    return figure


def mask_overlap(overlap: MaskOverlap, ensemble: Sequence[str]) -> "Figure":
    """Draw the overlap of the masks of all pairs of sub-models; the members of the ensemble stand out."""
    names, values = overlap.names, overlap.jaccard
    figure, ax = new_figure(HALF, 3.6)
    show_numbers = len(names) <= MOST_NUMBERS
    cells = {(float(j), float(i)): values[i][j] for i in range(len(names)) for j in range(i)}
    _matrix(ax, cells, lambda value: f"{100 * value:.0f}" if show_numbers else "")
    ax.set(xlim=(-0.5, len(names) - 1.5), ylim=(len(names) - 0.5, 0.5))
    ax.set_xticks(range(len(names) - 1), names[:-1], rotation=90)
    ax.set_yticks(range(1, len(names)), names[1:])
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        if label.get_text() in ensemble:
            label.set(color=ACCENT, fontweight="bold")
    return figure


def _matrix(ax: "Axes", cells: Mapping[tuple[float, float], float], text: Any) -> None:
    """Draw cells at (x, y), the darker the larger their value, with a number in each."""
    from matplotlib.patches import Rectangle

    low, high = min(cells.values(), default=0.0), max(cells.values(), default=1.0)
    for (x, y), value in cells.items():
        depth = (value - low) / (high - low) if high > low else 0.5
        colour = LOOKS["harp"].colour
        ax.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, color=colour, alpha=0.08 + 0.87 * depth, lw=0))
        ink = "#ffffff" if depth > 0.5 else INK
        ax.text(x, y, text(value), ha="center", va="center_baseline", fontsize=7.5, color=ink)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def layer_sparsity(layers: LayerSparsity) -> "Figure":
    """Draw the sparsity of each layer, by score (the paper's Figure 5)."""
    names, weights = layers.names, np.asarray(layers.weights, float)
    many = len(names) > 12
    figure, ax = new_figure(WIDE if many else HALF, 3.6)
    x, scores = np.arange(len(names)), layers.sparsity
    for i, (score, values) in enumerate(scores.items()):
        shift = (i - (len(scores) - 1) / 2) * 0.7 / max(len(scores), 1)
        colour, marker = SCORE_COLOURS[i % len(SCORE_COLOURS)], SCORE_MARKERS[i % len(SCORE_MARKERS)]
        label = score.upper() if len(score) <= 4 else score
        ax.plot(x + shift, 100 * np.asarray(values), ls="", marker=marker, ms=5, color=colour, label=label)
    overall = float(np.mean([np.average(values, weights=weights) for values in scores.values()]))
    ax.axhline(100 * overall, color=INK, lw=0.9, ls=DASHED)
    for edge in x[:-1] + 0.5:
        ax.axvline(edge, color=RULE, lw=0.5, alpha=0.35)
    ticks = [f"{name} ({count(number)})" for name, number in zip(names, weights, strict=True)]
    slant: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(x, ticks, fontsize=8, **({"rotation": 90} if many else slant))
    ax.tick_params(axis="x", length=0)
    ax.set(xlim=(-0.5, len(names) - 0.5), ylabel="sparsity, %")
    ax.grid(axis="y")
    figure.legend(ncols=max(len(scores), 1), loc="outside upper left", handletextpad=0.1, columnspacing=1.2)
    return figure


def rollback_epochs(training: TrainingRecord) -> list[float]:
    """Return where on an axis of epochs training went back: between the last good epoch and the next."""
    again = [epoch.epoch - 0.5 for epoch in training.epochs if epoch.rolled_back]
    return again + [epoch.epoch + 0.5 for epoch in training.epochs if epoch.stopped]


def training_curves(trainings: Sequence[TrainingRecord]) -> "Figure":
    """Draw held-out accuracy, loss and learning rate over epochs; dotted where training went back."""
    panels: dict[str, Any] = {
        "held-out robust, %": lambda epoch: epoch.held_out and 100 * epoch.held_out.robust,
        "held-out clean, %": lambda epoch: epoch.held_out and 100 * epoch.held_out.clean,
        "loss (log scale)": lambda epoch: epoch.loss,
        "learning rate": lambda epoch: epoch.learning_rate,
    }
    figure, axes = new_figure(WIDE, 2.9, ncols=len(panels))
    for ax, (title, of_epoch) in zip(axes, panels.items(), strict=True):
        for training in trainings:
            look = LOOKS[training.name]
            points = [(epoch.epoch, of_epoch(epoch)) for epoch in training.epochs if of_epoch(epoch) is not None]
            epochs, values = zip(*points, strict=True) if points else ((), ())
            ax.plot(epochs, values, color=look.colour, label=look.label, marker="o" if len(points) == 1 else "")
            for position in rollback_epochs(training):
                ax.axvline(position, color=look.colour, linestyle=":", linewidth=1)
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid()
        if "log" in title:
            ax.set_yscale("log")
            ax.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.yaxis.set_minor_formatter(lambda value, _: "")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=max(len(labels), 1), loc="outside upper left", labelcolor="linecolor")
    return figure


def examples_plot(examples: Examples | None, result: EvaluationResult, classes: Sequence[str] = ()) -> Plot:
    """Return a few images with adversarial ones as a plot of a page.

    Args:
        examples: the images; None: the plot is named as left out.
        result: holds the threat model.
        classes: names of the classes; none: they are numbered.
    """
    linf = result.threat.norm == "linf"
    shown = examples if examples is not None and len(examples.label) else None
    caption = (
        "Each image with its label \u2192 the prediction; misclassifications in colour. Middle row: what was added "
        f"(blue) or taken away (red), at full colour {'eps' if linf else 'the largest change shown'}."
    )
    draw = (lambda: _image_grid(shown, classes, result.threat.eps if linf else 0.0)) if shown else None
    return Plot("examples", "What the strongest attack does", caption, draw, wide=True)


def _image_grid(examples: Examples, classes: Sequence[str], eps: float) -> "Figure":
    """Draw the first images; a change of `eps` has full colour, or the largest change if `eps` is 0."""
    clean, adversarial = examples.clean[:MOST_EXAMPLES], examples.adversarial[:MOST_EXAMPLES]
    delta = (adversarial - clean).mean(1)
    scale = eps or float(np.abs(delta).max()) or 1.0
    figure, ax = new_figure(WIDE, 0.9 + 2.7 * WIDE / (1.06 * MOST_EXAMPLES + 1) / 0.92)
    shown = (examples.label, examples.clean_prediction, examples.adversarial_prediction)
    for j in range(len(clean)):
        label, before, after = [classes[int(values[j])] if classes else str(int(values[j])) for values in shown]
        _picture(ax, clean[j], j, 0)
        ax.imshow(delta[j], cmap="RdBu", vmin=-scale, vmax=scale, interpolation="none", extent=_extent(j, 1))
        _picture(ax, adversarial[j], j, 2)
        for row, prediction in ((0, before), (2, after)):
            left, _, _, top = _extent(j, row)
            style: dict[str, Any] = {"color": INK} if prediction == label else {"color": ACCENT, "fontweight": "bold"}
            text = f"{label} \u2192 {prediction}"
            ax.text(left + 0.5, top + 0.05, text, ha="center", va="bottom", fontsize=8.5, **style)
    for row, name in enumerate(("clean", "change", "adversarial")):
        ax.text(-0.12, -row * 1.3 - 0.5, name, ha="right", va="center", fontsize=9)
    ax.set(xlim=(-0.9, 1.06 * max(len(clean), MOST_EXAMPLES)), ylim=(-3.65, 0.3), aspect="equal")
    ax.axis("off")
    return figure


def _extent(column: int, row: int) -> tuple[float, float, float, float]:
    left, top = 1.06 * column, -1.3 * row
    return left, left + 1, top - 1, top


def _picture(ax: "Axes", image: np.ndarray, column: int, row: int) -> None:
    grey = len(image) == 1
    pixels = image[0] if grey else np.moveaxis(image, 0, -1)
    style: dict[str, Any] = {"cmap": "gray" if grey else None, "vmin": 0, "vmax": 1, "interpolation": "none"}
    ax.imshow(pixels, extent=_extent(column, row), **style)
