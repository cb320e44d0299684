"""Write the report: one page, its Markdown twin, the summary and the figures."""

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from sparsemble.core.artifacts import write_json
from sparsemble.core.threat import as_fraction
from sparsemble.report.figures import draw_all
from sparsemble.report.summary import NAMES, row_of, validate
from sparsemble.report.tables import cells, columns, duration, headline, interval, markdown, percent, size

CAPTIONS = {
    "robustness_size": (
        "Robustness against size",
        "Worst-case accuracy with its 95 % interval, against the bytes of the stored model.",
    ),
    "curves": ("Accuracy against eps", "The same {images} test images at every radius; it must fall to chance."),
    "members_run": (
        "Members run an image",
        "On clean images, and under the attack, of those tried, that costs the most members.",
    ),
    "layers": (
        "Where the weights went",
        "Sparsity of each layer, averaged over the sub-models of a score, with its number of weights (the paper's "
        "Figure 5).",
    ),
    "examples": (
        "What the attacks do",
        "Top: label and answer on the clean image. Middle: the change, red down and blue up, at full scale of eps. "
        "Bottom: the answer on the adversarial image; coloured where the team is fooled.",
    ),
    "training": ("Training", "Held-out images only; the best epoch of the second half is kept."),
    "overlap": (
        "How different the masks are",
        "Jaccard overlap of the kept weights of every two sub-models, in percent.",
    ),
}


def write_report(summary: dict[str, Any], figures: dict[str, Any], examples: dict[str, np.ndarray], out: Path) -> None:
    """Write `index.html`, `report.md`, `summary.json` and `figures/*.svg`.

    Args:
        summary: the numbers, as docs/summary.md describes them.
        figures: what the plots need, by plot; an empty table leaves its plot out.
        examples: images in [0, 1] with labels and answers; may be empty.
        out: an existing folder.

    Raises:
        InputError: the summary breaks its schema.
    """
    validate(summary)
    drawn = draw_all(summary, figures, examples)
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for name, svg in drawn.items():
        (folder / f"{name}.svg").write_text(svg, "utf-8")
    (out / "index.html").write_text(render(summary, figures, drawn), "utf-8")
    (out / "report.md").write_text(markdown(summary), "utf-8")
    write_json(out / "summary.json", summary)


def render(summary: dict[str, Any], figures: dict[str, Any], drawn: dict[str, str]) -> str:
    """Fill the page's template."""
    import jinja2

    template = (resources.files("sparsemble.report") / "page.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    images = figures["curves"].get("images", 0)
    plots = [
        {"name": name, "title": title, "caption": caption.format(images=images), "svg": _unique(drawn[name], name)}
        for name, (title, caption) in CAPTIONS.items()
        if name in drawn
    ]
    return environment.from_string(template).render(
        summary=summary,
        headline=headline(summary),
        facts=facts(summary),
        columns=columns(summary),
        rows=[(row["name"], NAMES[row["name"]], cells(summary, row)) for row in summary["rows"]],
        dynamic=[(label, percent(value)) for label, value in row_of(summary, "team_dynamic")["attacks"].items()],
        open_checks=[check for check in summary["checks"] if check["status"] != "pass"],
        passed=sum(check["status"] == "pass" for check in summary["checks"]),
        plots=plots,
    )


def facts(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the few numbers at the top of the page: value, what it is, what to compare it with."""
    team, dense = row_of(summary, "team_dynamic"), row_of(summary, "dense")
    return [
        (f"{percent(team['worst_case'])} %", "accuracy in the worst case", f"95 % interval {interval(team)}"),
        (f"{percent(team['clean'])} %", "accuracy on clean images", f"dense parent {percent(dense['clean'])} %"),
        (size(team["bytes"]), "on disk", f"dense parent {size(dense['bytes'])}"),
        (
            f"{team['members_run']['clean']:.2f}",
            f"of {len(summary['selection']['team'])} members run",
            f"{team['members_run']['attacked']:.2f} under the costliest attack tried",
        ),
        (
            duration(team["seconds"]),
            "of one core to train",
            f"dense parent {duration(dense['seconds'])}",
        ),
        (
            as_fraction(summary["threat"]["eps"]),
            f"eps, {summary['threat']['norm']}",
            f"{team['images']} test images",
        ),
    ]


def _unique(svg: str, name: str) -> str:
    """Give the identifiers of a figure its name, so that several fit into one page."""
    return svg.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
