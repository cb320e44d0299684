"""The report of a comparison: its tables in the terminal, and one page with its Markdown twin."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Group
from rich.text import Text

from sparsemble.core.results import ComparisonResult, EvaluationResult, PairedTest, QuotedResult
from sparsemble.report.descriptions import autoattack_runs, passes, premises
from sparsemble.report.formatting import duration, p_value, percent, points
from sparsemble.report.page import Page, Plot, Section
from sparsemble.report.plot_style import PALETTE, THEME, Look
from sparsemble.report.result_tables import DASH, result_columns
from sparsemble.report.table import Column, Table
from sparsemble.report.tradeoff_plot import TRADEOFF, robustness_against_size

MARKERS = ("o", "D", "s", "v", "^", "P")
ONE_SEED = "\u2020"
"""Marks a row that stands on one seed: today, every row."""


def write_comparison(comparison: ComparisonResult, folder: Path) -> None:
    """Write `index.html`, `comparison.md`, `comparison.json` and `figures/tradeoff.svg`."""
    rows, first = comparison.rows, comparison.rows[0]
    names = [row.name for row in rows] + [other.name for other in comparison.quoted]
    title = " and ".join(names) if len(names) == 2 else f"{len(names)} evaluations"
    beside = "Beside this page: comparison.json with every number, comparison.md, and the plot in figures/."
    page = Page(
        title=f"{title}, compared",
        kind="comparison",
        kicker=[first.data.name, f"{first.threat.norm} {first.threat.eps_text}"],
        alarms=comparison.alarms,
        headline=_headline(comparison),
        comparison=premises(first, len(rows)),
        aside=[Section("Differences between the rows", comparison.notes)],
        sections=[
            Section("Results", [_results_table(comparison)]),
            *([Section("Pairs", [_pairs_table(comparison)])] if comparison.pairs else []),
            *([Section("Numbers of others", [_quoted_table(comparison)])] if comparison.quoted else []),
            Section("Accuracy under each attack, %", [_attacks_table(comparison)]),
            Section("How each row was measured", [_measurement_table(comparison), beside]),
        ],
        plots=[Plot("tradeoff", *TRADEOFF, lambda: robustness_against_size(rows, _looks(comparison)), wide=True)],
    )
    page.write(folder, "comparison.md")
    comparison.save(folder / "comparison.json")


def comparison_table(comparison: ComparisonResult) -> Group:
    """Return the tables that a comparison ends with, for a terminal of 80 columns or more."""
    notes = Text(f"{ONE_SEED} one seed.")
    for alarm in comparison.alarms:
        notes.append(f"\n{alarm}", style="bold red")
    for note in comparison.notes:
        notes.append(f"\n{note}", style="yellow")
    notes.append(f"\n{premises(comparison.rows[0], len(comparison.rows))}", style="dim")
    tables = [_results_table(comparison).terminal("".join(_headline(comparison)))]
    if comparison.pairs:
        tables.append(_pairs_table(comparison).terminal("Worst case of a minus that of b"))
    if comparison.quoted:
        tables.append(_quoted_table(comparison).terminal("Numbers of others, not measured here"))
    return Group(*tables, notes)


def _marked(row: EvaluationResult) -> str:
    return f"{row.name} {ONE_SEED}"


def _headline(comparison: ComparisonResult) -> tuple[str, str, str]:
    """Return which row keeps most, and whether that is more than chance; the middle part is the number."""
    if len(comparison.rows) == 1:
        (row,) = comparison.rows
        beside = f" accuracy in its worst case; {len(comparison.quoted)} beside it by others, without a paired test."
        return f"{row.name} keeps ", f"{percent(row.robust_accuracy)} %", beside
    first, second = sorted(comparison.rows, key=lambda row: -row.robust_accuracy)[:2]
    pair = next(pair for pair in comparison.pairs if {pair.a, pair.b} == {first.name, second.name})
    low, high = pair.interval if pair.a == first.name else [-end for end in reversed(pair.interval)]
    lead = first.robust_accuracy - second.robust_accuracy
    chance = "may be chance" if pair.contains_zero else "is more than chance on these images"
    return (
        f"{first.name} keeps ",
        f"{percent(first.robust_accuracy)} %",
        f" accuracy in its worst case, the most of {len(comparison.rows)}; its lead of {100 * lead:.1f} points over "
        f"{second.name} {chance} (95 % interval {points(low)} to {points(high)}).",
    )


def _looks(comparison: ComparisonResult) -> dict[str, Look]:
    """Return how each row is drawn; colours come again after as many rows as there are."""
    return {
        row.name: Look(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], row.name)
        for i, row in enumerate(comparison.rows)
    }


def _results_table(comparison: ComparisonResult) -> Table[EvaluationResult]:
    colours = {name: THEME[look.colour] for name, look in _looks(comparison).items()}
    return Table(
        result_columns(comparison.rows, Column("row", _marked, left=True)),
        comparison.rows,
        f"{ONE_SEED} one seed. Members: clean / under the attack of those tried that costs most. Latency is measured "
        "on clean images; torch gains nothing from zeros.",
        colour=lambda row: colours[row.name],
    )


def _measurement_table(comparison: ComparisonResult) -> Table[EvaluationResult]:
    def failed(row: EvaluationResult) -> str:
        return ", ".join(str(check.number) for check in row.checks_with("failed")) or "none"

    columns: list[Column[EvaluationResult]] = [
        Column("row", _marked, left=True),
        Column("AutoAttack", lambda row: ", ".join(autoattack_runs(row)) or "not run", left=True),
        Column("attacks", lambda row: str(len(row.attacks))),
        Column("search", lambda row: row.search_dtype, left=True),
        Column("seed of the attacks", lambda row: str(row.seed)),
        Column("passes", passes),
        Column("time", lambda row: duration(row.seconds)),
        Column("selected on", lambda row: row.model.selected_on or "not known", left=True),
        Column("checks failed", failed, left=True),
        Column("checks skipped", lambda row: str(len(row.checks_with("skipped")))),
        Column("weights, sha256", lambda row: row.model.sha256[:12], left=True),
    ]
    return Table(columns, comparison.rows)


def _pairs_table(comparison: ComparisonResult) -> Table[PairedTest]:
    def verdict(pair: PairedTest) -> str:
        chance = "may be chance" if pair.contains_zero else "they differ"
        return chance if pair.same_attacks else f"{chance}; attacks not the same"

    columns: list[Column[PairedTest]] = [
        Column("a", lambda pair: pair.a, left=True),
        Column("b", lambda pair: pair.b, left=True),
        Column("difference, points", lambda pair: points(pair.difference), short="points"),
        Column("95 % interval", lambda pair: f"{points(pair.interval[0])} to {points(pair.interval[1])}", short="95 %"),
        Column("correct alone", lambda pair: f"{pair.only_a} / {pair.only_b}", short=None),
        Column("p", lambda pair: p_value(pair.p_value)),
        Column("verdict", verdict, left=True),
    ]
    return Table(
        columns,
        comparison.pairs,
        "Worst-case accuracy of a minus that of b, image by image on the same images. Interval after Tango 1998; "
        "correct alone: images that only a, or only b, classifies correctly; p: McNemar's exact test. The interval "
        "and the exact test are two methods, and near their borders they may disagree.",
    )


def _quoted_table(comparison: ComparisonResult) -> Table[QuotedResult]:
    """Return numbers of others, with the file that each is from."""

    def known(name: str) -> Callable[[QuotedResult], str]:
        return lambda row: DASH if getattr(row, name) is None else percent(getattr(row, name))

    def threat(row: QuotedResult) -> str:
        return " ".join(part for part in (row.norm, row.eps_text) if part) or DASH

    def attacks(row: QuotedResult) -> str:
        return ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in row.attacks.items()) or DASH

    columns: list[Column[QuotedResult]] = [
        Column("quoted", lambda row: row.name, left=True),
        Column("from", lambda row: f"{row.kind}: {row.source}", left=True, short=None),
        Column("data", lambda row: row.data or DASH, left=True),
        Column("threat", threat, left=True),
        Column("images", lambda row: DASH if row.images is None else str(row.images), short=None),
        Column("network", lambda row: row.architecture or DASH, left=True, short=None),
        Column("clean, %", known("clean_accuracy"), short="clean"),
        Column("robust, %", known("robust_accuracy"), "the lowest that the file names", short="robust"),
        Column("corrupted, %", known("corrupted_accuracy"), "mean over common corruptions", short="corrupted"),
        Column("attacks, %", attacks, "what is left; in a log after each part", left=True, short=None),
    ]
    caption = "Read from files of others. They have no outcomes of single images, so none is tested against a row."
    shown = [column for column in columns if any(column.cell(row) != DASH for row in comparison.quoted)]
    return Table(shown, comparison.quoted, caption)


def _attacks_table(comparison: ComparisonResult) -> Table[str]:
    """Return each attack with the accuracy that it leaves each row, attacks that all rows share first."""
    differing, partial = comparison.differing_attacks, comparison.partial_attacks

    def remark(label: str) -> str:
        return "settings differ" if label in differing else "not on every row" if label in partial else ""

    def column(row: EvaluationResult) -> Column[str]:
        accuracy = {attack.label: percent(attack.robust_accuracy) for attack in row.attacks}
        return Column(row.name, lambda label: accuracy.get(label, DASH))

    columns = [Column[str]("attack", str, left=True), Column("", remark, left=True), *map(column, comparison.rows)]
    return Table(columns, [*comparison.shared_attacks, *differing, *partial])
