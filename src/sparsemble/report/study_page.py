"""The report of a study: one page with its Markdown twin, and the numbers as CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemble.core.artifacts import write_bytes
from sparsemble.core.results import StudyLine, StudyNumbers, StudyResult
from sparsemble.report.figures import interval_bars
from sparsemble.report.formatting import count, duration, members, percent, plural, span
from sparsemble.report.page import Note, Page, Plot, Section, provenance
from sparsemble.report.plot_style import INK, PALETTE, WIDE, new_figure
from sparsemble.report.table import Column, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_study(study: StudyResult, folder: Path) -> None:
    """Write `index.html`, `study.md`, `study.csv`, `study.json` and `figures/study.svg`.

    Args:
        study: all cells, and the table in which seeds are put together.
        folder: made if it is missing.
    """
    study_page(study).write(folder, "study.md")
    write_bytes(folder / "study.csv", as_csv(study).encode())
    study.save(folder / "study.json")


def study_page(study: StudyResult) -> Page:
    """Return the page of a study."""
    failed = dict.fromkeys(f"{_name(study, line)}, {text}" for line in study.table for text in line.failed)
    failures = [Section("Failed", [Note(text) for text in failed])] if failed else []
    return Page(
        title=study.title,
        kind="study",
        kicker=[f"recipe {study.recipe}", f"{plural(len(study.seeds), 'seed')} ({', '.join(map(str, study.seeds))})"],
        headline=headline(study),
        comparison=f"Stages took {duration(study.stage_seconds)} in all, one after the other; the last call ran "
        f"{study.stages_run} of them in {duration(study.wall_seconds)}.",
        sections=[
            Section("Results", [study_table(study)]),
            *failures,
            Section(
                "How to reproduce this study",
                [
                    *provenance(study.command, study.machine, {}, study.source),
                    Note(f"Stages by source revision {', '.join(s[:12] or 'unknown' for s in study.stage_sources)}."),
                ],
            ),
        ],
        plots=[
            Plot(
                "study",
                "Worst-case accuracy",
                f"Over {list(study.axes)[-1]}, with 95 % intervals.",
                (lambda: draw(study)) if any(line.numbers for line in study.table) else None,
                wide=True,
            )
        ],
    )


def headline(study: StudyResult) -> tuple[str, str, str]:
    """Return the best line of the table in one sentence; the middle part is the number."""
    measured = [line for line in study.table if line.numbers and not _is_parent(study, line)]
    if not measured:
        return (f"{len(study.cells)} models, of which ", "none", " was measured.")
    best = max(measured, key=lambda line: line.numbers.worst_case if line.numbers else 0)
    low, high = best.interval
    worst = best.numbers.worst_case if best.numbers else 0.0
    return (
        f"Of {plural(len(measured), 'combination')}, {_name(study, best)} keeps the most in the worst case: ",
        f"{percent(worst)} %",
        f" (95 % interval {percent(low)} to {percent(high)}). The best of many is partly chance.",
    )


def study_table(study: StudyResult) -> Table[StudyLine]:
    """Return one row for each combination of values and row, its seeds together."""

    def numbers(write: Callable[[StudyNumbers], str]) -> Callable[[StudyLine], str]:
        return lambda line: write(line.numbers) if line.numbers else ""

    def axis_column(axis: str, first: bool) -> Column[StudyLine]:
        def cell(line: StudyLine) -> str:
            value = line.values.get(axis, "")
            return "dense parent" if first and not value and _is_parent(study, line) else value

        return Column(axis, cell, left=True)

    several = len({line.row for line in study.table if line.values}) > 1
    columns = [
        *[axis_column(axis, i == 0) for i, axis in enumerate(study.axes)],
        *([Column[StudyLine]("row", lambda line: line.row, left=True)] if several else []),
        Column[StudyLine]("clean, %", numbers(lambda n: percent(n.clean_accuracy))),
        Column("worst case, %", lambda line: percent(line.numbers.worst_case) if line.numbers else "failed"),
        Column("95 % interval", lambda line: span(line.interval) if line.interval else ""),
        Column("seeds", lambda line: str(line.seeds) if line.numbers else ""),
        Column("model sparsity, %", numbers(lambda n: percent(n.sparsity))),
        Column("weights", numbers(lambda n: count(round(n.nonzeros)))),
        Column("MACs", numbers(lambda n: count(round(n.macs_nonzero)))),
        Column("training", numbers(lambda n: duration(n.training_seconds))),
        *([Column[StudyLine]("members", numbers(lambda n: members(n.members_run)))] if study.kind == "run" else []),
    ]
    return Table(
        columns,
        study.table,
        "Worst case: the fraction of images that are classified correctly when clean and under every attack. "
        "Intervals hold for other images and, with several seeds, other seeds. Training: time of all stages that a "
        "model was made from, its dense parent's included.",
    )


def _is_parent(study: StudyResult, line: StudyLine) -> bool:
    """Whether a line is a dense parent beside its cells; of kind run, it is a row like the others."""
    return study.kind == "pruned" and line.row == "dense"


def _name(study: StudyResult, line: StudyLine, without: str | None = None) -> str:
    """Return the values of a line, without that of one axis."""
    names = ["dense parent"] if _is_parent(study, line) else []
    names += [value for axis, value in line.values.items() if axis != without]
    if study.kind == "run" and len({other.row for other in study.table}) > 1:
        names.append(line.row)
    return ", ".join(names)


def as_csv(study: StudyResult) -> str:
    """Return the numbers of the table, unrounded."""
    attacks = sorted({label for line in study.table if line.numbers for label in line.numbers.attacks})
    names = (
        "clean_accuracy",
        "worst_case",
        "sparsity",
        "nonzeros",
        "macs_nonzero",
        "training_passes",
        "training_seconds",
    )
    shown = ["model_sparsity" if name == "sparsity" else name for name in names]  # an axis may be called sparsity
    out = io.StringIO()
    writer = csv.writer(out)
    run = ["members_run_clean", "members_run_attacked"]
    writer.writerow([*study.axes, "row", "seeds", *shown, "low", "high", *run, *attacks, "failed"])
    for line in study.table:
        values = [*(line.values.get(axis, "") for axis in study.axes), line.row, line.seeds]
        if line.numbers:
            values += [getattr(line.numbers, name) for name in names]
            values += [*line.interval, line.numbers.members_run.clean, line.numbers.members_run.attacked]
            values += [line.numbers.attacks.get(label, "") for label in attacks]
        else:
            values += [""] * (len(names) + 4 + len(attacks))
        writer.writerow([*values, "; ".join(line.failed)])
    return out.getvalue()


def draw(study: StudyResult) -> "Figure":
    """Draw worst-case accuracy over the last axis, one line for each value of the others."""
    axis = list(study.axes)[-1]
    positions = {value: i for i, value in enumerate(study.axes[axis])}
    figure, ax = new_figure(WIDE, 4.5)
    groups: dict[str, list[StudyLine]] = {}
    for line in study.table:
        if line.numbers and axis in line.values:
            groups.setdefault(_name(study, line, without=axis) or axis, []).append(line)
        elif line.numbers:
            worst = 100 * line.numbers.worst_case
            ax.axhline(worst, color=INK, linestyle="--", linewidth=1, label=_name(study, line))
    for i, (name, lines) in enumerate(groups.items()):
        _draw_line(ax, lines, [positions[line.values[axis]] + 0.03 * (i - len(groups) / 2) for line in lines], name, i)
    ax.set_xticks(list(positions.values()), list(positions))
    ax.set_xlabel(axis)
    ax.set_ylabel("worst-case accuracy, %")
    ax.grid(axis="y")
    figure.legend(ncols=3, loc="outside upper left")
    return figure


def _draw_line(ax: "Axes", lines: Sequence[StudyLine], x: Sequence[float], name: str, number: int) -> None:
    worst = [line.numbers.worst_case if line.numbers else 0.0 for line in lines]
    bars = [interval_bars(line.interval[0], value, line.interval[1]) for line, value in zip(lines, worst, strict=True)]
    ax.errorbar(
        x,
        [100 * value for value in worst],
        [[bar[end][0] for bar in bars] for end in (0, 1)],
        color=PALETTE[number % len(PALETTE)],
        marker="os^D"[number // len(PALETTE) % 4],
        markersize=4,
        linewidth=1.2,
        elinewidth=0.6,
        label=name,
    )
