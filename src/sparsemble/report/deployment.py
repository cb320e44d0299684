"""What exporting and timing an ensemble left: tables for the terminal, and the plot of `sparsemble bench`."""

from pathlib import Path

from sparsemble.core.results import (
    AccuracyChange,
    ArithmeticAccuracy,
    ArithmeticChange,
    BenchResult,
    BenchRow,
    ExportResult,
    HeldOutAccuracy,
)
from sparsemble.report.formatting import percent, plural
from sparsemble.report.plot_style import INK, PALETTE, STYLE, new_figure
from sparsemble.report.table import Column, Table


def export_table(result: ExportResult) -> Table[tuple[str, str]]:
    """Return what an export wrote: names and values."""

    def accuracy(held_out: HeldOutAccuracy) -> str:
        return f"clean {percent(held_out.clean)} %, robust {percent(held_out.robust)} %"

    rows = {
        "values of the weights": result.values,
        "arithmetic": result.arithmetic,
        "bytes of the packed file": f"{result.bytes:,}",
        "share of the dense parent in float32": f"{100 * result.share_of_dense_float32:.2f} %",
        "sparsity": f"{result.sparsity:.4f}",
        "held-out accuracy, unrounded": accuracy(result.unrounded),
        "held-out accuracy, rounded": accuracy(result.rounded),
    }
    if result.change:
        rows |= _change_rows(result.change)
    for name, agrees in result.formats.items():
        rows[f"{name} against the rounded ensemble"] = (
            f"logits within {agrees.logits:.1g}; {agrees.labels} labels and {agrees.decisions} decisions differ of "
            f"{agrees.images} ({agrees.near} depend on rounding)"
        )
        if agrees.static_ensemble is not None and agrees.batch_of_one is not None:
            within = f"logits within {agrees.static_ensemble:.1g}; within {agrees.batch_of_one:.1g} in a batch of one"
            rows[f"{name}, all members in one graph"] = within
    columns: list[Column[tuple[str, str]]] = [
        Column("what", lambda row: row[0], left=True),
        Column("value", lambda row: row[1], left=True),
    ]
    return Table(columns, [*rows.items(), *result.not_written.items()])


def _change_rows(change: ArithmeticChange) -> dict[str, str]:
    """Return the accuracies in float32 and in 8 bits, each attacked itself, and what changed."""

    def accuracy(found: ArithmeticAccuracy) -> str:
        attacks = ", ".join(f"{label} {percent(correct)} %" for label, correct in found.attacks.items())
        return (
            f"clean {percent(found.clean)} %, robust {percent(found.robust)} % ({attacks}); "
            f"{found.members_run:.2f} members run"
        )

    def points(found: AccuracyChange) -> str:
        low, high = (100 * end for end in found.interval)
        return f"{100 * found.difference:+.1f} points [{low:+.1f}, {high:+.1f}]"

    return {
        "attacked in float32": accuracy(change.float32),
        "attacked in 8 bits": accuracy(change.int8),
        "change in 8 bits, paired 95 %": f"clean {points(change.clean)}, robust {points(change.robust)}",
    }


def bench_table(result: BenchResult) -> Table[BenchRow]:
    """Return the times of every engine in every configuration, and sentences on what stands out."""

    def share(value: float | None) -> str:
        return "" if value is None else percent(value)

    columns: list[Column[BenchRow]] = [
        Column("engine", lambda row: row.engine, left=True),
        Column("arithmetic", lambda row: row.arithmetic, left=True),
        Column("batch", lambda row: str(row.batch)),
        Column("threads", lambda row: str(row.threads)),
        Column("members run", lambda row: "" if row.members_run is None else f"{row.members_run:.2f}"),
        Column("ms", lambda row: f"{row.median_ms:.2f}"),
        Column("quartiles", lambda row: f"{row.low_quartile_ms:.2f} to {row.high_quartile_ms:.2f}"),
        Column("images/s", lambda row: f"{row.images_per_second:.0f}"),
        Column("ratio", lambda row: f"{row.ratio:.2f}"),
        Column("ratio, any precision", lambda row: _ratio(row.ratio_any_precision)),
        Column("labels as in float32, %", lambda row: share(row.agreement)),
        Column("accuracy, %", lambda row: share(row.accuracy)),
    ]
    first = ", ".join(f"{f.empty_cache_s:.1f} ({f.filled_cache_s:.2f}) for {f.batch}" for f in result.first_use)
    lines = [
        *(_bench_headline(result) if result.headline else []),
        *(f"not timed: {name}: {reason}" for name, reason in result.skipped.items()),
        *([f"first prediction, seconds with an empty cache (a filled one), by images: {first}"] if first else []),
    ]
    return Table(columns, result.rows, "\n".join(lines))


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _bench_headline(result: BenchResult) -> list[str]:
    """Return both ratios, each with the engine that it is over and the accuracy of both."""
    ours = next(row for row in result.rows if row.engine == result.headline)
    dense = [row for row in result.rows if row.dense and (row.batch, row.threads) == (ours.batch, ours.threads)]
    in_float32 = min((row for row in dense if row.arithmetic == "float32"), key=lambda row: row.median_ms)
    of_all = min(dense, key=lambda row: row.median_ms)

    def described(row: BenchRow) -> str:
        arithmetic = "" if row is in_float32 or row.arithmetic in row.engine else f" in {row.arithmetic}"
        if row.accuracy is not None:
            return f"{row.engine}{arithmetic} (accuracy {percent(row.accuracy)} %)"
        same = "" if row.agreement is None else f" ({percent(row.agreement)} % of labels as in float32)"
        return f"{row.engine}{arithmetic}{same}"

    return [
        f"batch {ours.batch}, {plural(ours.threads, 'thread')}: {described(ours)} is {ours.ratio:.2f} times as fast as "
        f"the fastest dense engine in float32, {described(in_float32)}, and {_ratio(ours.ratio_any_precision)} times "
        f"as fast as the fastest in any precision, {described(of_all)}"
    ]


def draw_bench(result: BenchResult, path: Path) -> None:
    """Draw bars of the ratio of medians, with what the quartiles would give, to a .png or .svg file."""
    from matplotlib.style import context

    groups = list(dict.fromkeys((row.batch, row.threads) for row in result.rows))
    engines = list(dict.fromkeys(row.engine for row in result.rows))
    width = 0.8 / len(engines)
    with context(STYLE):
        figure, ax = new_figure(max(6, 2.2 * len(groups) + 2), 4.5)
        for i, engine in enumerate(engines):
            rows = [row for row in result.rows if row.engine == engine]
            x = [groups.index((row.batch, row.threads)) + (i - (len(engines) - 1) / 2) * width for row in rows]
            low = [row.ratio * (1 - row.median_ms / row.high_quartile_ms) for row in rows]
            high = [row.ratio * (row.median_ms / row.low_quartile_ms - 1) for row in rows]
            style = {"label": engine, "color": PALETTE[i % len(PALETTE)]}
            errors = {"yerr": [low, high], "error_kw": {"elinewidth": 0.7, "ecolor": INK}}
            bars = ax.bar(x, [row.ratio for row in rows], width, **errors, **style)
            ax.bar_label(bars, fmt="%.1f", fontsize=7)
        ax.axhline(1, color=INK, linewidth=0.8)
        ax.set_xticks(range(len(groups)), [f"batch {batch}, {plural(threads, 'thread')}" for batch, threads in groups])
        ax.set_ylabel("times as fast as the fastest dense engine in float32")
        ax.legend(fontsize=7)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, facecolor="white")
