"""Write a comparison of evaluations: one page, its Markdown twin, the numbers and a plot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sparsemble.core.artifacts import write_bytes, write_json
from sparsemble.report import formatting
from sparsemble.report.formatting import count, duration, percent, size, span
from sparsemble.report.plot_style import COLOURS, SCORE_COLOURS, THEME, draw
from sparsemble.report.tables import markdown_table
from sparsemble.report.template import fill, plots, plots_in_markdown, strip, write_plots

PALETTE = [
    COLOURS[row] for row in ("ensemble_dynamic", "harp", "ensemble_static", "small_dense", "best_member", "dense")
]
PALETTE += SCORE_COLOURS
MARKERS = ("o", "D", "s", "v", "^", "P")
FIGURES = {"size": "Robustness against size and work"}
CAPTIONS = {
    "size": "Worst-case accuracy with its 95 % interval. Up is more robust, left is smaller (first panel) or less work "
    "(second panel). Rows of equal size are drawn side by side.",
}
ONE_SEED = "\u2020"
"""Marks a row that stands on one seed."""

Cell = Callable[[dict[str, Any]], str]


def columns(found: dict[str, Any]) -> dict[str, Cell]:
    """Return the columns of the table of rows, by title."""
    shown: dict[str, Cell] = {
        "clean, %": lambda row: percent(row["clean_accuracy"]),
        "worst case, %": lambda row: percent(row["worst_case"]),
        "95 % interval": lambda row: span(row["worst_case_interval"]),
        "AutoAttack": modes,
        "sparsity, %": lambda row: percent(row["sparsity"]),
        "non-zeros": lambda row: count(row["nonzeros"]),
        "file": lambda row: size(row["bytes"]),
        "non-zero MACs": lambda row: count(row["macs_nonzero"]),
        "members": formatting.members,
    }
    if any(row["latency_ms"] for row in found["rows"]):
        shown["ms, batch 1"] = lambda row: latency(row, "batch_1")
        shown["ms, batch 64"] = lambda row: latency(row, "batch_64")
    return shown


def measured() -> dict[str, Cell]:
    """Return the columns of the table that says how each row was measured, by title."""
    return {
        "AutoAttack": modes,
        "attacks": lambda row: str(len(row["attacks"])),
        "search": lambda row: str(row["search"]),
        "seed of the attacks": lambda row: str(row["seed"]),
        "passes": lambda row: count(sum(row["passes"].values())),
        "time": lambda row: duration(row["seconds"]),
        "selected on": lambda row: f"{row['selected_on']} images" if row["selected_on"] else "not known",
        "checks failed": lambda row: ", ".join(map(str, row["failed"])) or "none",
        "checks waived": lambda row: str(len(row["waived"])),
        "weights, sha256": lambda row: str(row["sha256"][:12]),
    }


def modes(row: dict[str, Any]) -> str:
    """Write how AutoAttack ran."""
    return ", ".join(row["autoattack"]) or "not run"


def latency(row: dict[str, Any], batch: str) -> str:
    """Write a latency in milliseconds, or a dash."""
    times: dict[str, float] | None = row["latency_ms"]
    return f"{times[batch]:.3g}" if times else "\u2013"


def marked(row: dict[str, Any]) -> str:
    """Write the name of a row, marked if it stands on one seed."""
    return f"{row['name']} {ONE_SEED}" if row["single_seed"] else str(row["name"])


def points(share: float) -> str:
    """Write a difference of accuracies in points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "\u2212").replace("+0.0", "0.0").replace("\u22120.0", "0.0")


def p_value(value: float) -> str:
    """Write a p-value in two digits."""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def headline(found: dict[str, Any]) -> tuple[str, str, str]:
    """Say which row keeps most, and whether that is more than chance; the middle part is the number."""
    first, second = sorted(found["rows"], key=lambda row: -row["worst_case"])[:2]
    pair = next(p for p in found["pairs"] if {p["a"], p["b"]} == {first["name"], second["name"]})
    low, high = pair["interval"] if pair["a"] == first["name"] else [-end for end in reversed(pair["interval"])]
    lead = first["worst_case"] - second["worst_case"]
    between = f"95 % interval {points(low)} to {points(high)}"
    chance = "may be chance" if pair["holds_zero"] else "is more than chance on these images"
    return (
        f"{first['name']} keeps ",
        f"{percent(first['worst_case'])} %",
        f" accuracy in its worst case, the most of {len(found['rows'])}; its lead of {100 * lead:.1f} points over "
        f"{second['name']} {chance} ({between}).",
    )


def images(found: dict[str, Any]) -> str:
    """Say which images all rows share."""
    data = found["data"]
    drawn = "all of them" if data["subset_seed"] is None else f"drawn with seed {data['subset_seed']}"
    return f"{data['images']} test images of {data['name']}, {drawn}, the same for every row."


def pair_cells(pair: dict[str, Any]) -> list[str]:
    """Write a paired test: difference, interval, images that one alone gets right, p-value, verdict."""
    low, high = pair["interval"]
    verdict = "may be chance" if pair["holds_zero"] else "they differ"
    return [
        points(pair["difference"]),
        f"{points(low)} to {points(high)}",
        f"{pair['only_a']} / {pair['only_b']}",
        p_value(pair["p_value"]),
        verdict if pair["same_attacks"] else f"{verdict}; attacks not the same",
    ]


PAIR_TITLES = ("difference, points", "95 % interval", "right alone", "p", "verdict")


def comparison_table(found: dict[str, Any]) -> Group:
    """Return the tables that a comparison ends with, for a terminal of 80 columns or more."""
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
    rows = Table(title=Text("".join(headline(found))), title_justify="left", title_style="bold", **style)
    rows.add_column("", overflow="fold")
    for title in ("clean", "worst case %", "AutoAttack", "weights", "file", "ms", "passes"):
        rows.add_column(title, justify="right", overflow="fold")
    for row in found["rows"]:
        low, high = (100 * bound for bound in row["worst_case_interval"])
        rows.add_row(
            Text(marked(row)),
            percent(row["clean_accuracy"]),
            f"{percent(row['worst_case'])} ({low:.0f}\u2013{high:.0f})",
            modes(row),
            count(row["nonzeros"]).replace(" ", "\u00a0"),
            size(row["bytes"]).replace(" ", "\u00a0"),
            latency(row, "batch_1"),
            count(sum(row["passes"].values())).replace(" ", "\u00a0"),
        )
    pairs = Table(**style)
    pairs.add_column("worst case, a \u2212 b", overflow="fold")
    for title in ("points (95 % interval)", "p", "verdict"):
        pairs.add_column(title, justify="left" if title == "verdict" else "right", overflow="fold")
    for pair in found["pairs"]:
        difference, interval, _, p, verdict = pair_cells(pair)
        pairs.add_row(Text(f"{pair['a']} \u2212 {pair['b']}"), f"{difference} ({interval})", p, verdict)
    note = Text(f"{ONE_SEED} one seed. ms: one image in torch.")
    for line in found["alarms"]:
        note.append(f"\n{line}", style="bold red")
    for line in found["notes"]:
        note.append(f"\n{line}", style="yellow")
    return Group(rows, pairs, note.append(f"\n{formatting.threat(found)} {images(found)}", style="dim"))


def attack_rows(found: dict[str, Any]) -> list[list[str]]:
    """Return each attack with the accuracy that it leaves each row, attacks that all rows share first."""
    shared, partial = found["attacks"]["shared"], found["attacks"]["partial"]
    labels = [*shared, *found["attacks"]["different_settings"], *partial]
    kind = dict.fromkeys(shared, "") | dict.fromkeys(found["attacks"]["different_settings"], "settings differ")
    return [
        [
            label,
            kind.get(label, "not on every row"),
            *[percent(row["attacks"][label]) if label in row["attacks"] else "\u2013" for row in found["rows"]],
        ]
        for label in labels
    ]


def markdown(found: dict[str, Any]) -> str:
    """Return the comparison as Markdown."""
    names = [row["name"] for row in found["rows"]]
    text = [f"# {' and '.join(names) if len(names) == 2 else f'{len(names)} evaluations'}, compared", ""]
    text += [f"**{''.join(headline(found))}**", "", f"{formatting.threat(found)} {images(found)}", ""]
    text += [*[f"- **{alarm}**" for alarm in found["alarms"]], *[f"- {note}" for note in found["notes"]]]
    for title, of_table in (("Results", columns(found)), ("How each row was measured", measured())):
        rows = [[marked(row), *[cell(row) for cell in of_table.values()]] for row in found["rows"]]
        text += ["", f"## {title}", "", *markdown_table(["row", *of_table], rows, 1)]
    text += ["", f"{ONE_SEED} one seed.", "", "## Pairs", ""]
    pairs = [[pair["a"], pair["b"], *pair_cells(pair)] for pair in found["pairs"]]
    text += markdown_table(["a", "b", *PAIR_TITLES], pairs, 2)
    text += ["", "## Attacks", "", "Accuracy, %.", ""]
    text += markdown_table(["attack", "", *names], attack_rows(found), 2)
    return "\n".join(text) + "\n"


def write_comparison(found: dict[str, Any], out: Path) -> None:
    """Write `index.html`, `comparison.md`, `comparison.json` and `figures/size.svg`.

    Args:
        found: what `evaluation.compare` returned.
        out: folder, made if it is missing.
    """
    from sparsemble.report.tradeoff_plot import Look, robustness_against_size

    names = [row["name"] for row in found["rows"]]
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    looks = {name: Look(colours[name], MARKERS[i % len(MARKERS)], name) for i, name in enumerate(names)}
    drawn = {"size": draw(lambda: robustness_against_size(found["rows"], looks))}
    write_plots(drawn, out)
    page = fill(
        "comparison.html",
        found=found,
        formatting=formatting,
        headline=headline(found),
        images=images(found),
        colours={name: THEME[colour] for name, colour in colours.items()},
        columns=columns(found),
        measured=measured(),
        marked=marked,
        strip=strip({row["name"]: (row["worst_case"], row["worst_case_interval"]) for row in found["rows"]}),
        pairs=[(pair["a"], pair["b"], pair_cells(pair)) for pair in found["pairs"]],
        pair_titles=PAIR_TITLES,
        attacks=attack_rows(found),
        **plots(drawn, FIGURES, CAPTIONS, ("size",)),
    )
    write_bytes(out / "index.html", page.encode())
    text = "\n".join([markdown(found), *plots_in_markdown(drawn, FIGURES, CAPTIONS)])
    write_bytes(out / "comparison.md", text.encode())
    write_json(out / "comparison.json", found)
