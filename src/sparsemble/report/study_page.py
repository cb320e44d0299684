"""The report of a study: one page with its Markdown twin, and the numbers as CSV."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemble.core.artifacts import write_bytes
from sparsemble.core.results import StudyLine, StudyNumbers, StudyResult
from sparsemble.report.figures import interval_bars
from sparsemble.report.formatting import count, duration, members, percent, plural, span
from sparsemble.report.page import Page, Plot, Section, provenance
from sparsemble.report.plot_style import INK, PALETTE, WIDE, new_figure
from sparsemble.report.table import Column, Interval, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_study(study: StudyResult, folder: Path) -> None:
    """Write `index.html`, `study.md`, `study.csv`, `study.json` and `figures/study.svg`."""
    study_page(study).write(folder, "study.md")
    write_bytes(folder / "study.csv", as_csv(study).encode())
    study.save(folder / "study.json")


def study_page(study: StudyResult) -> Page:
    """Return the page of a study."""
    failed = dict.fromkeys(f"{_name(study, line)}, {text}" for line in study.table for text in line.failed)
    failures = [Section("Failed", list(failed))] if failed else []
    sources = ", ".join(source[:12] or "unknown" for source in study.stage_sources)
    reproduce = [*provenance(study, {}), f"Stages by source revision {sources}."]
    return Page(
        title=study.title,
        kind="study",
        kicker=[f"recipe {study.recipe}", f"{plural(len(study.seeds), 'seed')} ({', '.join(map(str, study.seeds))})"],
        headline=_headline(study),
        comparison=f"Stages took {duration(study.stage_seconds)} in all, one after the other; the last call ran "
        f"{study.stages_run} of them in {duration(study.wall_seconds)}.",
        sections=[
            Section("Results", [_study_table(study)]),
            *failures,
            Section("How to reproduce this study", reproduce),
        ],
        plots=[
            Plot(
                "study",
                "Worst-case accuracy",
                f"Over {list(study.axes)[-1]}, with 95 % intervals.",
                (lambda: _draw(study)) if any(line.numbers for line in study.table) else None,
                wide=True,
            )
        ],
    )


def _headline(study: StudyResult) -> tuple[str, str, str]:
    """Return the best line of the table in one sentence; the middle part is the number."""
    measured = [(line.numbers.worst_case, line) for line in study.table if line.numbers and not _is_parent(study, line)]
    if not measured:
        return (f"{len(study.cells)} models, of which ", "none", " was measured.")
    worst, best = max(measured, key=lambda pair: pair[0])
    low, high = best.interval
    return (
        f"Of {plural(len(measured), 'combination')}, {_name(study, best)} keeps the most in the worst case: ",
        f"{percent(worst)} %",
        f" (95 % interval {percent(low)} to {percent(high)}). The best of many is partly chance.",
    )


def _study_table(study: StudyResult) -> Table[StudyLine]:
    """Return one row for each combination of values and row, its seeds together."""

    def numbers(write: Callable[[StudyNumbers], str]) -> Callable[[StudyLine], str]:
        return lambda line: write(line.numbers) if line.numbers else ""

    def axis_column(axis: str, first: bool) -> Column[StudyLine]:
        def cell(line: StudyLine) -> str:
            value = line.values.get(axis, "")
            return "dense parent" if first and not value and _is_parent(study, line) else value

        return Column(axis, cell, left=True)

    several = len({line.row for line in study.table if line.values}) > 1
    whole_runs = study.kind != "pruned"
    columns = [
        *[axis_column(axis, i == 0) for i, axis in enumerate(study.axes)],
        *([Column[StudyLine]("row", lambda line: line.row, left=True)] if several else []),
        Column[StudyLine]("clean, %", numbers(lambda n: percent(n.clean_accuracy))),
        *[_attack_column(label) for label in _attacks_on_all(study)],
        Column("worst case, %", lambda line: percent(line.numbers.worst_case) if line.numbers else "failed"),
        Column("95 % interval", lambda line: span(line.interval) if line.interval else ""),
        Column("seeds", lambda line: str(line.seeds) if line.numbers else ""),
        Column("model sparsity, %", numbers(lambda n: percent(n.sparsity))),
        Column("weights", numbers(lambda n: count(round(n.nonzeros)))),
        Column("MACs", numbers(lambda n: count(round(n.macs_nonzero)))),
        Column("speed-up", numbers(lambda n: f"{n.speedup:.2f}x" if n.speedup else "")),
        Column("training", numbers(lambda n: duration(n.training_seconds))),
        *([Column[StudyLine]("members", numbers(lambda n: members(n.members_run)))] if whole_runs else []),
    ]
    return Table(
        columns,
        study.table,
        "Worst case: the fraction of images that are classified correctly when clean and under every attack. "
        "Intervals hold for other images and, with several seeds, other seeds. Speed-up: multiply-accumulates of the "
        "dense parent over those of the weights that are not zero, of the members that a clean image runs. Training: "
        "time of all stages that a model was made from, its dense parent's included.",
    )


def _attack_column(label: str) -> Column[StudyLine]:
    """Return the column of an attack that every line was attacked with."""
    return Column(f"{label}, %", lambda line: percent(line.numbers.attacks[label]) if line.numbers else "")


def _attacks_on_all(study: StudyResult) -> list[str]:
    """Return the attacks that every line was attacked with, such as those listed in the recipe."""
    measured = [list(line.numbers.attacks) for line in study.table if line.numbers]
    return [label for label in measured[0] if all(label in others for others in measured)] if measured else []


def _is_parent(study: StudyResult, line: StudyLine) -> bool:
    """Whether a line is a dense parent beside its cells; of whole runs, it is a row like the others."""
    return study.kind != "run" and line.row == "dense"


def _name(study: StudyResult, line: StudyLine, without: str | None = None) -> str:
    """Return the values of a line, without that of one axis."""
    names = ["dense parent"] if _is_parent(study, line) else []
    names += [value for axis, value in line.values.items() if axis != without]
    if study.kind != "pruned" and len({other.row for other in study.table}) > 1:
        names.append(line.row)
    return ", ".join(names)


def as_csv(study: StudyResult) -> str:
    """Return the numbers of the table, unrounded."""
    attacks = sorted({label for line in study.table if line.numbers for label in line.numbers.attacks})
    names = ["clean_accuracy", "worst_case", "sparsity", "nonzeros", "macs_nonzero"]
    names += ["training_passes", "training_seconds", "speedup"]
    shown = ["model_sparsity" if name == "sparsity" else name for name in names]  # an axis may be called sparsity
    shown += ["low", "high", "members_run_clean", "members_run_attacked"]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*study.axes, "row", "seeds", *shown, *attacks, "failed"])
    for line in study.table:
        values: list[object] = [""] * (len(shown) + len(attacks))
        if line.numbers:
            values = ["" if (value := getattr(line.numbers, name)) is None else value for name in names]
            values += [*line.interval, line.numbers.members_run.clean, line.numbers.members_run.attacked]
            values += [line.numbers.attacks.get(label, "") for label in attacks]
        axes = [line.values.get(axis, "") for axis in study.axes]
        writer.writerow([*axes, line.row, line.seeds, *values, "; ".join(line.failed)])
    return out.getvalue()


def _draw(study: StudyResult) -> "Figure":
    """Draw worst-case accuracy over the last axis, one line for each value of the others."""
    axis = list(study.axes)[-1]
    positions = {value: i for i, value in enumerate(study.axes[axis])}
    figure, ax = new_figure(WIDE, 4.5)
    groups: dict[str, list[tuple[int, Interval]]] = {}
    for line in study.table:
        if not line.numbers:
            continue
        worst = line.numbers.worst_case
        if axis in line.values:
            interval = (line.interval[0], worst, line.interval[1])
            name = _name(study, line, without=axis) or axis
            groups.setdefault(name, []).append((positions[line.values[axis]], interval))
        else:
            ax.axhline(100 * worst, color=INK, linestyle="--", linewidth=1, label=_name(study, line))
    for i, (name, points) in enumerate(groups.items()):
        intervals = [interval for _, interval in points]
        ax.errorbar(
            [position + 0.03 * (i - len(groups) / 2) for position, _ in points],
            [100 * worst for _, worst, _ in intervals],
            interval_bars(intervals),
            color=PALETTE[i % len(PALETTE)],
            marker="os^D"[i // len(PALETTE) % 4],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.6,
            label=name,
        )
    ax.set_xticks(list(positions.values()), list(positions))
    ax.set(xlabel=axis, ylabel="worst-case accuracy, %")
    ax.grid(axis="y")
    figure.legend(ncols=3, loc="outside upper left")
    return figure
