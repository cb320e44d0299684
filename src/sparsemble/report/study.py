"""A study as one table, in Markdown and CSV, and as a plot."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsemble.core.artifacts import write_bytes
from sparsemble.report.formatting import count, duration, members, percent

COLUMNS = ("clean %", "worst case %", "95 %", "seeds", "sparse %", "weights", "MACs", "training")


def write_study(result: dict[str, Any], folder: Path) -> None:
    """Write `study.md`, `study.csv` and `study.png`.

    Args:
        result: the content of `study.json`.
        folder: where to.
    """
    lines = result["table"]
    write_bytes(folder / "study.md", markdown(result, lines).encode())
    write_bytes(folder / "study.csv", as_csv(result, lines).encode())
    (folder / "study.png").unlink(missing_ok=True)  # of an earlier call
    if any(line["worst_case"] is not None for line in lines):
        draw(result, lines, folder / "study.png")


def markdown(result: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
    """Return the table with what it was made by."""
    several = len({line["row"] for line in lines if line["values"]}) > 1
    numbers = _numbers(result)
    titles = [*map(_plain, result["axes"]), *(["row"] if several else []), *numbers]
    text = [f"# {result['title']}", "", f"    {result['command']}", ""]
    made = result["machine"]
    text += [
        f"{made.get('processor', 'unknown processor')}, {made.get('cores', '?')} cores, device "
        f"{made.get('device', 'cpu')}; {len(result['cells'])} models, seeds {', '.join(map(str, result['seeds']))}. "
        f"Stages took {duration(result['stage_seconds'])} in all, one after the other; the last call ran "
        f"{result['stages_run']} of them in {duration(result['wall_seconds'])}.",
        f"Made by source revision {', '.join(source[:12] or 'unknown' for source in result['stage_sources'])}.",
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * (len(titles) - len(numbers)) + "---:|" * len(numbers),
    ]
    text += ["| " + " | ".join(_cells(result, line, several)) + " |" for line in lines]
    text += ["", "Worst case: the share of images answered rightly under every attack. Intervals hold for other images"]
    text += [
        "and, with several seeds, other seeds (see `interval` in `pipeline/study_table.py`). Training: time of all"
    ]
    text += ["stages that a model was made from, its dense parent's included.", ""]
    failed = dict.fromkeys(f"- {_name(result, line)}, {sentence}" for line in lines for sentence in line["failed"])
    return "\n".join([*text, *(["Failed:", "", *failed, ""] if failed else [])])


def _is_parent(result: dict[str, Any], line: dict[str, Any]) -> bool:
    """Whether a line is a dense parent beside its cells; of kind run, it is a row like the others."""
    return bool(result["kind"] == "pruned" and line["row"] == "dense")


def _name(result: dict[str, Any], line: dict[str, Any]) -> str:
    return ", ".join([*(["dense parent"] if _is_parent(result, line) else []), *line["values"].values()])


def _plain(text: str) -> str:
    """Return a text that may stand in a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _cells(result: dict[str, Any], line: dict[str, Any], several: bool) -> list[str]:
    named = [_plain(line["values"].get(axis, "")) for axis in result["axes"]]
    if _is_parent(result, line) and not named[0]:
        named[0] = "dense parent"
    named += [line["row"]] if several else []
    if line["worst_case"] is None:
        return [*named, "failed", *[""] * (len(_numbers(result)) - 1)]
    low, high = line["interval"]
    return [
        *named,
        percent(line["clean"]),
        percent(line["worst_case"]),
        f"{percent(low)} to {percent(high)}",
        str(line["seeds"]),
        percent(line["sparsity"]),
        count(round(line["nonzeros"])),
        count(round(line["macs_nonzero"])),
        duration(line["seconds"]),
        *([members(line)] if result["kind"] == "run" else []),
    ]


def _numbers(result: dict[str, Any]) -> list[str]:
    """Return the titles of the columns that hold numbers; only whole runs have ensembles."""
    return [*COLUMNS, *(["members run"] if result["kind"] == "run" else [])]


def as_csv(result: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
    """Return the same numbers, unrounded."""
    out = io.StringIO()
    attacks = sorted({label for line in lines for label in line.get("attacks", {})})
    names = ("clean", "worst_case", "seeds", "sparsity", "nonzeros", "macs_nonzero", "training_passes", "seconds")
    shown = ["model_sparsity" if name == "sparsity" else name for name in names]  # an axis may be called sparsity
    runs = ("clean", "attacked")
    writer = csv.writer(out)
    titles = [*result["axes"], "row", *shown, "low", "high", *(f"members_run_{how}" for how in runs)]
    writer.writerow([*titles, *attacks, "failed"])
    for line in lines:
        low, high = line.get("interval", ("", ""))
        writer.writerow(
            [
                *(line["values"].get(axis, "") for axis in result["axes"]),
                line["row"],
                *(line.get(name, "") for name in names),
                low,
                high,
                *(line.get("members_run", {}).get(how, "") for how in runs),
                *(line.get("attacks", {}).get(label, "") for label in attacks),
                "; ".join(line["failed"]),
            ]
        )
    return out.getvalue()


def draw(result: dict[str, Any], lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw worst-case accuracy over the last axis, one line for each value of the others."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axis = list(result["axes"])[-1]
    places = {value: i for i, value in enumerate(result["axes"][axis])}
    figure, ax = pyplot.subplots(figsize=(8, 5), layout="constrained")
    good = [line for line in lines if line["worst_case"] is not None]
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in good:
        if axis in line["values"]:
            groups.setdefault(_group(result, line, axis), []).append(line)
        else:
            ax.axhline(100 * line["worst_case"], color="0.4", linestyle="--", linewidth=1, label=_name(result, line))
    for i, (name, found) in enumerate(groups.items()):
        x = [places[line["values"][axis]] + 0.03 * (i - len(groups) / 2) for line in found]
        y = [100 * line["worst_case"] for line in found]
        bars = [[100 * abs(line["worst_case"] - line["interval"][end]) for line in found] for end in (0, 1)]
        marker = "os^D"[i // 10 % 4]  # after ten lines colours come again
        ax.errorbar(x, y, bars, marker=marker, markersize=4, linewidth=1.2, elinewidth=0.6, label=name)
    ax.set_xticks(list(places.values()), list(places))
    ax.set_xlabel(axis)
    ax.set_ylabel("worst-case accuracy, %")
    ax.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _group(result: dict[str, Any], line: dict[str, Any], axis: str) -> str:
    """Name the line of the plot that a line of the table belongs to: all but its place on the axis."""
    named = ["dense parent"] if _is_parent(result, line) else []
    named += [value for name, value in line["values"].items() if name != axis]
    named += [line["row"]] if result["kind"] == "run" else []
    return " ".join(named) or axis
