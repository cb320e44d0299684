"""The result table, for terminals, Markdown and the page."""

from collections.abc import Callable
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from sparsemble.report.formatting import (
    aim,
    beside,
    count,
    duration,
    headline,
    images,
    interval,
    members,
    percent,
    sentence,
    size,
    threat,
    verdict,
)
from sparsemble.report.schema import STATUSES
from sparsemble.report.summary import NAMES, SHORT_NAMES, row_of


class Column(NamedTuple):
    """A column of the full table."""

    group: str
    title: str
    meaning: str
    cell: Callable[[dict[str, Any]], str]


def shared_attacks(summary: dict[str, Any]) -> list[str]:
    """Return the labels of the attacks that every row has, in order."""
    return [label for label in summary["rows"][0]["attacks"] if all(label in row["attacks"] for row in summary["rows"])]


def columns(summary: dict[str, Any]) -> list[Column]:
    """Return the columns of the full table."""
    accuracy, work, torch, engine = "accuracy, %", "work an image", "torch, ms", "engine, ms"
    return [
        Column(accuracy, "clean", "on clean test images", lambda row: percent(row["clean"])),
        *[Column(accuracy, label, f"under the attack {label}", _under(label)) for label in shared_attacks(summary)],
        Column(
            accuracy,
            "worst case",
            "right under every attack made for the row, image by image",
            lambda row: percent(row["worst_case"]),
        ),
        Column(accuracy, "95 % interval", "Wilson interval of the worst case", interval),
        Column("size", "sparsity, %", "prunable weights that are 0, all members", lambda row: percent(row["sparsity"])),
        Column("size", "non-zeros", "weights that are not 0, all members", lambda row: count(row["nonzeros"])),
        Column("size", "file", "non-zero values and a bitmap, all members", lambda row: size(row["bytes"])),
        Column(work, "MACs, dense", "multiply-accumulates, zeros included", lambda row: count(row["macs_dense"])),
        Column(
            work,
            "MACs, non-zero",
            "of non-zero weights; ensemble, dynamic: expected on clean images",
            lambda row: count(row["macs_nonzero"]),
        ),
        Column(work, "members", "mean number run: clean / under the attack that costs most", members),
        Column(torch, "batch 1", "median, clean images", lambda row: f"{row['latency_ms']['batch_1']:.2f}"),
        Column(torch, "batch 64", "median, whole batch, clean", lambda row: f"{row['latency_ms']['batch_64']:.2f}"),
        Column(engine, "batch 1", "median, clean images", lambda row: f"{row['engine_ms']['batch_1']:.3f}"),
        Column(engine, "batch 64", "median, whole batch, clean", lambda row: f"{row['engine_ms']['batch_64']:.2f}"),
        Column(
            "training",
            "passes",
            "images forward and backward, attacks included",
            lambda row: count(row["training_passes"]),
        ),
        Column(
            "training", "time", "of one core, everything the row was made from", lambda row: duration(row["seconds"])
        ),
    ]


def _under(label: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: percent(row["attacks"][label])


def ordered_checks(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the checks, failed ones first, then waived ones."""
    return sorted(summary["checks"], key=lambda check: STATUSES.index(check["status"]))


def summary_table(summary: dict[str, Any]) -> Table:
    """Return the table that a run ends with, for a terminal of 80 columns or more."""
    table = Table(
        title=headline(summary),
        caption=_terminal_note(summary),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="",
    )
    table.add_column("", no_wrap=True)
    for title in ("clean", "worst case %", "sparse", "weights", "members", "train"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in summary["rows"]:
        low, high = (100 * bound for bound in row["worst_case_interval"])
        table.add_row(
            SHORT_NAMES[row["name"]],
            percent(row["clean"]),
            f"{percent(row['worst_case'])} ({low:.0f}\u2013{high:.0f})",
            percent(row["sparsity"]),
            count(row["nonzeros"]),
            members(row).replace(" / ", "/"),
            count(row["training_passes"]),
            style="bold" if row["name"] == "ensemble_dynamic" else None,
            end_section=row["name"] == "best_member",
        )
    return table


def _terminal_note(summary: dict[str, Any]) -> Text:
    """Say which checks failed or were waived, and on what the numbers stand."""
    note = Text(f"Checks: {verdict(summary)}.")
    for check in ordered_checks(summary):
        if check["status"] == "fail":
            note.append(f"\nfailed: {check['name']}: {check['detail']}", style="bold red")
    waived = [check["name"] for check in summary["checks"] if check["status"] == "waived"]
    if waived:
        note.append("\nwaived: " + "; ".join(waived), style="yellow")
    return note.append(f"\n{threat(summary)} {images(summary)}", style="dim")


def markdown(summary: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    of_table = columns(summary)
    titles = [f"{c.title} %" if c.group.endswith("%") and "%" not in c.title else c.title for c in of_table]
    titles = [
        f"{c.group.split(',')[0]} {t}" if c.group.startswith(("lat", "tra")) else t
        for c, t in zip(of_table, titles, strict=True)
    ]
    dynamic = row_of(summary, "ensemble_dynamic")["attacks"]
    opened = [check for check in ordered_checks(summary) if check["status"] != "pass"]
    lines = [f"# {summary['name']}, seed {summary['seed']}", "", f"**{headline(summary)}**", "", beside(summary), ""]
    lines += [f"{threat(summary)} {images(summary)}", "", f"Checks: {verdict(summary)}.", ""]
    lines += [f"- **{check['status']}**: {check['name']}: {check['detail']}" for check in opened]
    lines += ["", "## Results", ""]
    lines += markdown_table(
        ["row", *titles], [[NAMES[r["name"]], *[c.cell(r) for c in of_table]] for r in summary["rows"]], 1
    )
    lines += ["", "## Attacks on the dynamic ensemble", ""]
    lines += markdown_table(
        ["attack", "made against", "accuracy %"], [[k, aim(k), percent(v)] for k, v in dynamic.items()], 2
    )
    lines += ["", "## Checks", ""]
    checks = [[_number(c), c["name"], c["status"], c["detail"]] for c in ordered_checks(summary)]
    lines += markdown_table(["number", "check", "verdict", "detail"], checks, 4)
    lines += [
        "",
        "## The ensemble",
        "",
        _ensemble(summary),
        "",
        "## How it was made",
        "",
        f"    {summary['command']}",
        "",
    ]
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in summary["machine"].items()]
    lines += [f"- {key} {value}" for key, value in summary["versions"].items()]
    lines += [f"- source: {summary['source'] or 'unknown'}"]
    return "\n".join(lines) + "\n"


def _ensemble(summary: dict[str, Any]) -> str:
    chosen, found = summary["selection"], summary["stopping"]["held_out"]
    runs = [one["outcome"]["members_run"] for one in summary["stopping"]["sensitivity"]]
    worst = [one["outcome"]["worst_case"] for one in summary["stopping"]["sensitivity"]]
    constants = (
        f" With each constant a tenth smaller or larger (a count: by one) it would run "
        f"{min(runs):.2f} to {max(runs):.2f} members there, at {100 * min(worst):.1f} to {100 * max(worst):.1f} %."
        if runs
        else ""
    )
    return (
        f"Members in running order: {', '.join(summary['stopping']['order'])}. Robust diversity "
        f"{chosen['robust_diversity']:.2f}. {sentence(chosen['rule'])} Stopping rule: {summary['stopping']['rule']}, "
        f"set on {found['images']} held-out images, where it runs {found['outcome']['members_run']:.2f} members on "
        f"clean ones and {found['outcome']['attacked_members_run']:.2f} under attack and is right in the worst case on "
        f"{100 * found['outcome']['worst_case']:.1f} % (all members: {100 * found['static']['worst_case']:.1f} %)."
        f"{constants}"
    )


def _number(check: dict[str, Any]) -> str:
    return "" if check["number"] is None else str(check["number"])


def markdown_table(titles: list[str], rows: list[list[str]], left: int) -> list[str]:
    """Write a table of Markdown whose first `left` columns are words and whose others are numbers."""
    rule = ["---"] * left + ["---:"] * (len(titles) - left)
    return ["| " + " | ".join(map(_cell, cells)) + " |" for cells in (titles, rule, *rows)]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
