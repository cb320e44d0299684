"""The tables of evaluations: classifiers side by side, the attacks on one of them, its checks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.text import Text

from sparsemble.core.results import STATUSES, AttackResult, CheckResult, CorruptionRecord, EvaluationResult, Passes
from sparsemble.core.results.corruptions import SEVERITIES
from sparsemble.core.results.evaluation_parts import ThreatRecord
from sparsemble.report.descriptions import alarms, attack_note, distance, premises
from sparsemble.report.formatting import count, duration, members, percent, size, span
from sparsemble.report.page import Details, Section
from sparsemble.report.table import Column, Interval, Table

DASH = "\u2013"
WORST_CASE = "correct when clean and under every attack"


def _worst_case_interval(result: EvaluationResult) -> Interval:
    low, high = result.interval
    return low, result.robust_accuracy, high


def result_columns(rows: Sequence[EvaluationResult], name: Column[EvaluationResult]) -> list[Column[EvaluationResult]]:
    """Return the columns of a table of classifiers side by side; one that no row has a value for is left out.

    Args:
        rows: the classifiers.
        name: the first column.
    """
    shared = [a.label for a in rows[0].attacks if all(a.label in {b.label for b in row.attacks} for row in rows)]
    engines = [engine for engine in ("torch", "engine") if any(engine in row.cost.latency for row in rows)]
    trained = any(row.cost.training_passes is not None for row in rows)
    accuracy, size_, work, train, hidden = "accuracy, %", "size", "work an image", "training", None
    zeros, bitmap = "prunable weights that are 0, all members", "non-zero values and a bitmap, all members"
    cost = "mean number run: clean / under the attack that costs most"
    expected, batch = "of non-zero weights, expected on clean images", "median of a whole batch of clean images"
    passes, time = "images forward and backward, attacks included", "of one core, all that the row was made from"
    common = "mean over the common corruptions and their severities"
    columns: list[Column[EvaluationResult]] = [
        name,
        Column("clean", lambda r: percent(r.clean_accuracy), "on clean test images", accuracy),
        *[Column(label, _under(label), f"under the attack {label}", accuracy, hidden) for label in shared],
        Column("worst case", lambda r: percent(r.robust_accuracy), WORST_CASE, accuracy, "worst"),
        Column("95 % interval", lambda r: span(r.interval), "Wilson", accuracy, "95 %", interval=_worst_case_interval),
        *([Column("corrupted", _corrupted, common, accuracy, hidden)] if any(row.corruptions for row in rows) else []),
        Column("sparsity, %", lambda r: percent(r.model.sparsity), zeros, size_, "sparse"),
        Column("non-zeros", lambda r: count(r.model.nonzeros), "weights that are not 0, all members", size_, "weights"),
        Column("file", lambda r: size(r.cost.bytes), bitmap, size_, hidden),
        Column("MACs, dense", lambda r: count(r.cost.macs_dense), "multiply-accumulates of all weights", work, hidden),
        Column("MACs, non-zero", lambda r: count(r.cost.macs_nonzero), expected, work, hidden),
        Column("members", lambda r: members(r.members_run), cost, work),
        *[
            Column(title, _latency(engine, title.replace(" ", "_")), batch, f"{engine}, ms", hidden)
            for engine in engines
            for title in ("batch 1", "batch 64")
        ],
    ]
    if trained:
        columns += [
            Column("passes", lambda r: _known(r.cost.training_passes, count), passes, train, hidden),
            Column("time", lambda r: _known(r.cost.training_seconds, duration), time, train, hidden),
        ]
    return columns


def _known(value: float | None, write: Callable[[float], str]) -> str:
    return DASH if value is None else write(value)


def _corrupted(row: EvaluationResult) -> str:
    return percent(row.corruptions.mean) if row.corruptions else DASH


def _under(label: str) -> Callable[[EvaluationResult], str]:
    return lambda row: percent(row.attack(label).robust_accuracy)


def _latency(engine: str, batch: str) -> Callable[[EvaluationResult], str]:
    def cell(row: EvaluationResult) -> str:
        times = row.cost.latency.get(engine)
        return f"{times[batch].median_ms:.3g}" if times else DASH

    return cell


class AttackRow(NamedTuple):
    """A row of the table of attacks."""

    label: str
    kind: str
    """clean, attack, ensemble attack or worst case."""
    note: str
    interval: Interval
    passes: Passes | None = None
    seconds: float | None = None
    members: float | None = None
    """Mean number run."""
    distance: str = ""


ROW_COLOURS = {
    "clean": "dense",
    "attack": "harp",
    "ensemble attack": "ensemble_static",
    "worst case": "ensemble_dynamic",
}
"""The row of a run's report whose colour a row of the table of attacks takes."""


def attack_rows(result: EvaluationResult) -> list[AttackRow]:
    """Return clean images, the attacks from the weakest to the strongest, and the worst case."""

    def row(attack: AttackResult) -> AttackRow:
        low, high = attack.interval
        return AttackRow(
            attack.label,
            attack.kind,
            attack_note(attack),
            (low, attack.robust_accuracy, high),
            attack.passes,
            attack.seconds,
            sum(attack.members_run) / len(attack.members_run) if result.model.members > 1 else None,
            "" if attack.minimum_distances is None else _median(attack, result.threat),
        )

    low, high = result.clean_interval
    run = result.members_run.clean if result.model.members > 1 else None
    seconds = sum(attack.seconds for attack in result.attacks)
    return [
        AttackRow("no attack", "clean", "", (low, result.clean_accuracy, high), members=run),
        *map(row, sorted(result.attacks, key=lambda attack: -sum(attack.correct))),
        AttackRow("worst case", "worst case", WORST_CASE, _worst_case_interval(result), result.passes, seconds),
    ]


def _median(attack: AttackResult, threat: ThreatRecord) -> str:
    norm = f" ({attack.minimum_norm})" if attack.minimum_norm else ""
    return distance(attack.median_distance, threat) + norm


def attack_table(result: EvaluationResult) -> Table[AttackRow]:
    """Return the attacks on a classifier; columns that no attack has a value for are left out."""

    def time(row: AttackRow) -> str:
        if row.seconds is None:
            return ""
        return duration(row.seconds) if row.seconds >= 0.5 else "< 1 s"

    def passes(kind: str) -> Callable[[AttackRow], str]:
        return lambda row: count(getattr(row.passes, kind)) if row.passes else ""

    rows, nearest = attack_rows(result), "of the nearest adversarial image found; minimum-norm attacks only"
    columns: list[Column[AttackRow]] = [
        Column("attack", lambda row: row.label, left=True, note=lambda row: row.note),
        Column("accuracy, %", lambda row: percent(row.interval[1]), "correctly classified images", short="acc. %"),
        Column("95 % interval", lambda r: span(r.interval[::2]), "Wilson", short="95 %", interval=lambda r: r.interval),
        Column("forward passes", passes("forward"), "images sent forward through a network", short="forward"),
        Column("backward passes", passes("backward"), "images sent backward", short=None),
        Column("time", time, "that the attack took"),
        Column("members", lambda r: "" if r.members is None else f"{r.members:.2f}", "mean number run on the images"),
        Column("median distance", lambda row: row.distance, nearest, short="distance"),
    ]
    cost = "An attack on the cost changes misclassified images, too, and may correct them. "
    caption = (
        "Accuracy is the fraction of all images, those that are misclassified without an attack included. An image "
        "counts as correct in the worst case if the deployed decision, in float32, is correct on it and on every "
        f"adversarial image made from it. {cost if result.members_run.slowdown is not None else ''}Passes count images "
        "sent through a network, each member of an ensemble for itself."
    )
    return Table(
        [column for column in columns if any(map(column.cell, rows))],
        rows,
        caption,
        colour=lambda row: f"--row-{ROW_COLOURS[row.kind]}",
        strong=lambda row: row.kind == "worst case",
        rule_above=lambda row: row.kind == "worst case" or row is rows[1],
    )


class CorruptionRow(NamedTuple):
    """A row of the table of corruptions."""

    name: str
    accuracy: tuple[float, ...]
    """At severities 1 to 5."""
    mean: float


def corruption_table(record: CorruptionRecord) -> Table[CorruptionRow]:
    """Return accuracy under each corruption and severity, and the means."""
    rows = [CorruptionRow(row.name.replace("_", " "), row.accuracy, row.mean) for row in record.corruptions]
    rows.append(CorruptionRow("mean", record.by_severity(), record.mean))

    def at(severity: int) -> Callable[[CorruptionRow], str]:
        return lambda row: percent(row.accuracy[severity])

    columns: list[Column[CorruptionRow]] = [
        Column("corruption", lambda row: row.name, left=True),
        *[Column(str(i + 1), at(i), f"at severity {i + 1}", "accuracy, %, at severity") for i in range(SEVERITIES)],
        Column("mean", lambda row: percent(row.mean), "over the severities", "accuracy, %, at severity"),
    ]
    made = f"generated with the parameters of {record.parameters}, seed {record.seed}"
    caption = (
        f"The common corruptions of Hendrycks & Dietterich 2019, {record.images} images, "
        f"{made if record.parameters else f'read from {record.source}'}; severities 1 to 5, and their mean. No "
        "adversary chooses anything here, and the worst case does not include these images."
    )
    return Table(
        columns,
        rows,
        caption,
        strong=lambda row: row.name == "mean",
        rule_above=lambda row: row.name == "mean",
    )


def _checks_count(result: EvaluationResult) -> str:
    return ", ".join(f"{len(result.checks_with(status))} {status}" for status in STATUSES)


def _checks_table(checks: Sequence[CheckResult]) -> Table[CheckResult]:
    """Return checks with what was measured or the reason, skipped ones before passed ones."""
    columns: list[Column[CheckResult]] = [
        Column("status", lambda check: check.status, left=True, css=lambda check: f"status {check.status}"),
        Column("number", lambda check: str(check.number)),
        Column("check", lambda check: check.name, left=True),
        Column("detail", lambda check: check.detail, left=True),
    ]
    return Table(columns, sorted(checks, key=lambda check: STATUSES.index(check.status)))


def checks_section(result: EvaluationResult) -> Section:
    """Return the checks: failed ones, then a count of the others, which stand behind a click."""
    failed, others = result.checks_with("failed"), [check for check in result.checks if check.status != "failed"]
    shown = _checks_table(failed) if failed else "No check failed." if others else "No checks were made."
    counts = _checks_count(result).partition(", ")[2]
    return Section("Checks", [shown, *([Details(counts, [_checks_table(others)])] if others else [])])


def beside_headline(result: EvaluationResult, rows: int = 1) -> list[Section]:
    """Return the threat model, the failed checks and the count of all."""
    failed = {f"failed {check.number}": f"{check.name}: {check.detail}" for check in result.checks_with("failed")}
    checks = Section(f"Checks: {_checks_count(result)}", [failed] if failed else [])
    return [Section("Threat model", [premises(result, rows)]), checks]


def terminal_notes(result: EvaluationResult, footer: str, more_alarms: Sequence[str] = ()) -> Text:
    """Return what stands below a table in the terminal: checks, alarms, and a footer in small print.

    Args:
        result: whose checks and alarms these are.
        footer: in small print.
        more_alarms: beside those of the result.
    """
    text = Text(f"Checks: {_checks_count(result)}.")
    failed = [f"failed: {check.number} {check.name}: {check.detail}" for check in result.checks_with("failed")]
    for line in (*more_alarms, *alarms(result), *failed):
        text.append(f"\n{line}", style="bold red")
    return text.append(f"\n{footer}", style="dim")
