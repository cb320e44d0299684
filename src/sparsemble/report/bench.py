"""`sparsemble bench` as a plot: how many times as fast as the fastest dense engine, one group a configuration."""

from pathlib import Path
from typing import Any


def draw_bench(found: dict[str, Any], path: Path) -> None:
    """Draw bars of the ratio of medians, with what its quartiles would give.

    Args:
        found: the content of the JSON.
        path: a .png or .svg file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = found["rows"]
    groups = list(dict.fromkeys((row["batch"], row["threads"]) for row in rows))
    names = list(dict.fromkeys(row["engine"] for row in rows))
    figure, ax = pyplot.subplots(figsize=(max(6, 2.2 * len(groups) + 2), 4.5), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        mine = {(row["batch"], row["threads"]): row for row in rows if row["engine"] == name}
        places = [(k, mine[group]) for k, group in enumerate(groups) if group in mine]
        ratios = [row["ratio"] for _, row in places]
        low = [row["ratio"] - row["ratio"] * row["median_ms"] / row["high_quartile_ms"] for _, row in places]
        high = [row["ratio"] * row["median_ms"] / row["low_quartile_ms"] - row["ratio"] for _, row in places]
        x = [k + (i - (len(names) - 1) / 2) * width for k, _ in places]
        bars = ax.bar(x, ratios, width, yerr=[low, high], error_kw={"elinewidth": 0.7}, label=name)
        ax.bar_label(bars, fmt="%.1f", fontsize=7)
    ax.axhline(1, color="0.4", linewidth=0.8)
    ax.set_xticks(range(len(groups)), [f"batch {b}, {t} thread{'s' if t > 1 else ''}" for b, t in groups])
    ax.set_ylabel("times as fast as the fastest dense engine")
    ax.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
