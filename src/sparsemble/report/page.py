"""Write the report: one page, its Markdown twin, the summary and the plots."""

from pathlib import Path
from typing import Any

import numpy as np

from sparsemble.core.artifacts import write_bytes, write_json
from sparsemble.report import formatting
from sparsemble.report.pool import COLUMNS as POOL_COLUMNS
from sparsemble.report.pool import Pool, pool_rows
from sparsemble.report.summary import NAMES, SHORT_NAMES, row_of, validate
from sparsemble.report.tables import Column, columns, markdown, markdown_table, ordered_checks
from sparsemble.report.template import fill, flat, plots, plots_in_markdown, strip, write_plots
from sparsemble.report.trainings import COLUMNS, EPOCH_COLUMNS, Trainings, epoch_rows, taken_back, training_rows

FIGURES = {
    "size": "Robustness against size and work",
    "curves": "Accuracy against eps",
    "members_run": "Members run an image",
    "examples": "What the strongest attack does",
    "layers": "Where the weights went",
    "overlap": "How different the masks are",
    "training": "Training",
    "cost": "What training cost",
}
"""The plots in the order of the page."""
WIDE = ("size", "examples", "training")


def write_report(summary: dict[str, Any], figures: dict[str, Any], examples: dict[str, np.ndarray], out: Path) -> None:
    """Write `index.html`, `report.md`, `summary.json`, `training.json`, `pool.json` and `figures/*.svg`.

    Args:
        summary: the numbers, as docs/summary.md describes them.
        figures: what the plots need, by plot (docs/summary.md); an empty table leaves its plot out.
        examples: images in [0, 1] with labels and answers (docs/summary.md); may be empty.
        out: folder, made if it is missing.

    Raises:
        InputError: the summary breaks its schema.
    """
    validate(summary)
    from sparsemble.report.figures import draw_all  # matplotlib and jinja2 take a second: only once there is work

    drawn = draw_all(summary, figures, examples)
    titles = captions(summary, figures)
    trainings = figures.get("training") or {}
    write_plots(drawn, out)
    pool = figures.get("pool") or {}
    write_bytes(out / "index.html", render(summary, drawn, titles, trainings, pool).encode())
    tables = [*pool_in_markdown(pool, summary), *trainings_in_markdown(trainings)]
    text = "\n".join([markdown(summary), *tables, *plots_in_markdown(drawn, FIGURES, titles)])
    write_bytes(out / "report.md", text.encode())
    write_json(out / "summary.json", summary)
    write_json(out / "training.json", trainings)
    write_json(out / "pool.json", pool)


def render(
    summary: dict[str, Any], drawn: dict[str, str], titles: dict[str, str], trainings: Trainings, pool: Pool
) -> str:
    """Fill the page's template."""
    of_table = columns(summary)
    return fill(
        "page.html",
        summary=summary,
        formatting=formatting,
        facts=facts(summary),
        columns=of_table,
        groups=column_groups(of_table),
        rows=[(row, NAMES[row["name"]], [column.cell(row) for column in of_table]) for row in summary["rows"]],
        strip=interval_strip(summary),
        headline=formatting.headline(summary).partition(
            formatting.percent(row_of(summary, "ensemble_dynamic")["worst_case"]) + " %"
        ),
        attacks=sorted(row_of(summary, "ensemble_dynamic")["attacks"].items(), key=lambda item: item[1]),
        checks=ordered_checks(summary),
        **plots(drawn, FIGURES, titles, WIDE),
        training_columns=COLUMNS,
        trainings=[
            (name, SHORT_NAMES[name], cells, epoch_rows(trainings[name])) for name, cells in training_rows(trainings)
        ],
        epoch_columns=EPOCH_COLUMNS,
        pool=pool_rows(pool, summary["selection"]["ensemble"]),
        pool_columns=POOL_COLUMNS,
        settings=list(flat(summary["recipe"])),
    )


def facts(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the few numbers at the top of the page: value, what it is, what to compare it with."""
    ensemble, dense = row_of(summary, "ensemble_dynamic"), row_of(summary, "dense")
    run = ensemble["members_run"]
    return [
        (
            f"{formatting.percent(ensemble['clean'])} %",
            "clean accuracy",
            f"dense parent {formatting.percent(dense['clean'])} %",
        ),
        (formatting.count(ensemble["nonzeros"]), "weights kept", f"dense parent {formatting.count(dense['nonzeros'])}"),
        (formatting.size(ensemble["bytes"]), "on disk", f"dense parent {formatting.size(dense['bytes'])}"),
        (
            f"{run['clean']:.2f} of {len(summary['selection']['ensemble'])}",
            "members run, clean image",
            f"{run['attacked']:.2f} under the costliest attack tried",
        ),
        (
            formatting.count(ensemble["macs_nonzero"]),
            "non-zero MACs, clean image",
            f"dense parent {formatting.count(dense['macs_nonzero'])}",
        ),
        (
            formatting.duration(ensemble["seconds"]),
            "of one core to train",
            f"dense parent {formatting.duration(dense['seconds'])}",
        ),
    ]


def captions(summary: dict[str, Any], figures: dict[str, Any]) -> dict[str, str]:
    """Say under each plot how to read it."""
    parent = row_of(summary, "best_member")
    kept = 1 - parent["sparsity"]
    by_chance = formatting.round_percent(kept / (2 - kept))
    images = (figures.get("curves") or {}).get("images", 0)
    linf = summary["threat"]["norm"] == "linf"
    trainings = figures.get("training") or {}
    return {
        "size": "Worst-case accuracy with its 95 % interval. Up is more robust, left is smaller (first panel) or less "
        "work (second panel). Rows of equal size are drawn side by side.",
        "curves": f"The same {images} test images at every radius. A sound attack takes every row down to chance.",
        "members_run": "On clean images and under the attack that costs the most members, of those tried.",
        "examples": "Each image with its label \u2192 the ensemble's answer; wrong answers in colour. Middle row: what was "
        f"added (blue) or taken away (red), at full colour {'eps' if linf else 'the largest change shown'}.",
        "layers": "Sparsity of each layer (with its number of weights), averaged over the sub-models of a score; the "
        "dashed line is the whole network. The paper's Figure 5.",
        "overlap": "Jaccard overlap, in percent, of the weights that two sub-models keep; the members of the ensemble in "
        f"colour. Masks of the best sub-model's size drawn blindly would share {by_chance}.",
        "training": " ".join(
            ["Accuracy on held-out images, the loss on training images, and the rate.", taken_back(trainings)]
        ).strip(),
        "cost": "Images passed forward and backward through a network, attacks included, and seconds of one core, for "
        "everything a row was made from.",
    }


def pool_in_markdown(pool: Pool, summary: dict[str, Any]) -> list[str]:
    """Return a section with a row for each sub-model."""
    rows = [
        [f"**{label}**" if chosen else label, *cells]
        for label, chosen, cells in pool_rows(pool, summary["selection"]["ensemble"])
    ]
    if not rows:
        return []
    table = markdown_table(["sub-model", *(column.title for column in POOL_COLUMNS)], rows, 1)
    return ["", "## Sub-models", "", *table, "", "In bold: members of the ensemble.", ""]


def trainings_in_markdown(trainings: Trainings) -> list[str]:
    """Return a section with a row for each training; `training.json` beside it has every epoch."""
    rows = [[SHORT_NAMES[name], *cells] for name, cells in training_rows(trainings)]
    if not rows:
        return []
    table = markdown_table(["training", *(column.title for column in COLUMNS)], rows, 1)
    return ["", "## Trainings", "", *table, "", "Every epoch: `training.json`.", ""]


def column_groups(of_table: list[Column]) -> list[tuple[str, int]]:
    """Return the groups of the columns with their widths, in order."""
    names = dict.fromkeys(column.group for column in of_table)
    return [(name, sum(column.group == name for column in of_table)) for name in names]


def interval_strip(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the scale in percent on which the table draws intervals, and each row's place on it in [0, 1]."""
    return strip({r["name"]: (r["worst_case"], r["worst_case_interval"]) for r in summary["rows"]})
