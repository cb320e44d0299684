"""The result table, for terminals, Markdown and the page."""

from typing import Any

from rich import box
from rich.table import Table

from sparsemble.report.summary import NAMES, SHORT_NAMES, row_of


def count(value: float) -> str:
    """Write a count with a unit of thousands: 14.5 k, 3.21 M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Write bytes."""
    return count(value) + "B" if value >= 1000 else f"{value:.0f} B"


def percent(share: float) -> str:
    """Write a share as percent with one decimal."""
    return f"{100 * share:.1f}"


def interval(row: dict[str, Any]) -> str:
    """Write the worst case's interval."""
    low, high = row["worst_case_interval"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def duration(seconds: float) -> str:
    """Write seconds."""
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def members(row: dict[str, Any]) -> str:
    """Write the members run, clean and attacked."""
    run = row["members_run"]
    if run["clean"] == run["attacked"]:
        return f"{run['clean']:g}"
    return f"{run['clean']:.2f} / {run['attacked']:.2f}"


def shared_attacks(summary: dict[str, Any]) -> list[str]:
    """Return the labels of the attacks that every row has, in order."""
    return [label for label in summary["rows"][0]["attacks"] if all(label in row["attacks"] for row in summary["rows"])]


def headline(summary: dict[str, Any]) -> str:
    """Say in a sentence what came out."""
    team, dense = row_of(summary, "team_dynamic"), row_of(summary, "dense")
    size_of_team = len(summary["selection"]["team"])
    return (
        f"A team of {size_of_team} sub-models, {percent(team['sparsity'])} % sparse in all, keeps "
        f"{percent(team['worst_case'])} % accuracy in the worst case of all attacks tried "
        f"(95 % interval {interval(team)}; its dense parent {percent(dense['worst_case'])} %) and runs "
        f"{team['members_run']['clean']:.2f} members on a clean image."
    )


def columns(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the head of the full table: title and explanation of each column."""
    return [
        ("clean %", "accuracy on clean test images"),
        *[(f"{label} %", f"accuracy under {label}") for label in shared_attacks(summary)],
        ("worst case %", "accuracy when every image meets the worst of all attacks made for its row"),
        ("95 % interval", "Wilson interval of the worst case"),
        ("sparsity %", "share of the dense parent's prunable weights that are 0, recounted; all members together"),
        ("non-zeros", "weights that are not 0, all members together"),
        ("MACs dense", "multiply-accumulates an image, zeros included, all members"),
        ("MACs non-zero", "those of non-zero weights; for the dynamic team as expected on clean images"),
        ("members run", "mean number of members run: clean / under the attack that costs most"),
        ("file", "bytes on disk: non-zero values and a bitmap, all members"),
        ("ms, batch 1", "median latency in torch, one thread, clean images"),
        ("ms, batch 64", "median latency in torch, one thread, clean images"),
        ("training passes", "images forward and backward to get there, attacks included"),
        ("training time", "seconds of one core to get there"),
    ]


def cells(summary: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """Return a row of the full table."""
    return [
        percent(row["clean"]),
        *[percent(row["attacks"][label]) for label in shared_attacks(summary)],
        percent(row["worst_case"]),
        interval(row),
        percent(row["sparsity"]),
        count(row["nonzeros"]),
        count(row["macs_dense"]),
        count(row["macs_nonzero"]),
        members(row),
        size(row["bytes"]),
        f"{row['latency_ms']['batch_1']:.2f}",
        f"{row['latency_ms']['batch_64']:.2f}",
        count(row["training_passes"]),
        duration(row["seconds"]),
    ]


def summary_table(summary: dict[str, Any]) -> Table:
    """Return the table that a run ends with, for a terminal of 80 columns."""
    failed = [check["name"] for check in summary["checks"] if check["status"] == "fail"]
    waived = sum(check["status"] == "waived" for check in summary["checks"])
    verdict = f"failed checks: {'; '.join(failed)}" if failed else "no check failed"
    table = Table(
        title=headline(summary),
        caption=f"{verdict}; {waived} waived. {summary['rows'][0]['images']} test images.",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
    )
    table.add_column("", no_wrap=True)
    for title in ("clean", "worst case", "sparse", "file", "members", "ms b64"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in summary["rows"]:
        team = row["name"] == "team_dynamic"
        low, high = (100 * bound for bound in row["worst_case_interval"])
        table.add_row(
            SHORT_NAMES[row["name"]],
            percent(row["clean"]),
            f"{percent(row['worst_case'])} ({low:.0f}-{high:.0f})",
            percent(row["sparsity"]),
            size(row["bytes"]),
            members(row),
            f"{row['latency_ms']['batch_64']:.2f}",
            style="bold" if team else None,
        )
    return table


def markdown(summary: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    titles = ["", *[title for title, _ in columns(summary)]]
    lines = [f"# {summary['name']}", "", headline(summary), "", "| " + " | ".join(titles) + " |"]
    lines.append("|" + "---|" + "---:|" * (len(titles) - 1))
    lines += ["| " + " | ".join([NAMES[row["name"]], *cells(summary, row)]) + " |" for row in summary["rows"]]
    dynamic = row_of(summary, "team_dynamic")["attacks"]
    lines += [
        "",
        "The dynamic team was attacked through: " + ", ".join(f"{k} {percent(v)} %" for k, v in dynamic.items()),
    ]
    lines += ["", "## Checks", "", "| check | verdict | detail |", "|---|---|---|"]
    lines += [f"| {c['number']} {c['name']} | {c['status']} | {c['detail']} |" for c in summary["checks"]]
    machine = ", ".join(f"{key} {value}" for key, value in summary["machine"].items())
    versions = ", ".join(f"{key} {value}" for key, value in summary["versions"].items())
    lines += [
        "",
        f"Made by `{summary['command']}`",
        f"on {machine}; {versions}; source {summary['source'] or 'unknown'}.",
    ]
    return "\n".join(lines) + "\n"
