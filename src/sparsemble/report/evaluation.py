"""Write an evaluation: one page, its Markdown twin and the plots."""

from pathlib import Path
from typing import Any

import numpy as np

from sparsemble.core.artifacts import write_bytes
from sparsemble.report import evaluation_text, formatting
from sparsemble.report.evaluation_schema import ROBUSTBENCH, validate_evaluation
from sparsemble.report.evaluation_tables import KINDS, columns, lines, made, markdown
from sparsemble.report.tables import ordered_checks
from sparsemble.report.template import fill, flat, plots, plots_in_markdown, strip, write_plots

FIGURES = {
    "attacks": "Accuracy under each attack",
    "curve": "Accuracy against eps",
    "distances": "How far the nearest adversarial image lies",
    "members": "The members, each alone",
    "work": "Members run",
    "examples": "What the strongest attack does",
}
"""The plots in the order of the page."""
WIDE = ("attacks", "examples")


def write_evaluation(result: dict[str, Any], examples: dict[str, np.ndarray], out: Path) -> None:
    """Write `index.html`, `evaluation.md` and `figures/*.svg`; `evaluation.json` is there already.

    Args:
        result: the numbers, as docs/evaluation_json.md describes them.
        examples: images in [0, 1] with labels and answers, as for a run's report; may be empty.
        out: folder, made if it is missing.

    Raises:
        InputError: the result breaks its schema.
    """
    validate_evaluation(result)
    from sparsemble.report.evaluation_figures import draw_evaluation  # matplotlib: only once there is work

    drawn = draw_evaluation(result, examples)
    of_plots = captions(result)
    write_plots(drawn, out)
    write_bytes(out / "index.html", render(result, drawn).encode())
    text = "\n".join([markdown(result), *plots_in_markdown(drawn, FIGURES, of_plots)])
    write_bytes(out / "evaluation.md", text.encode())


def render(result: dict[str, Any], drawn: dict[str, str]) -> str:
    """Fill the page's template."""
    of_table = lines(result)
    return fill(
        "evaluation.html",
        result=result,
        formatting=formatting,
        said=evaluation_text,
        facts=evaluation_text.facts(result),
        lines=of_table,
        columns=columns(of_table),
        colours={kind: f"--row-{row}" for kind, row in KINDS.items()},
        strip=strip({line.label: (line.accuracy, line.interval) for line in of_table}),
        checks=ordered_checks(result),
        made=list(made(result).items()),
        robustbench=[(name, result[name]) for name in ROBUSTBENCH],
        settings=[item for label, attack in result["attacks"].items() for item in flat({label: attack["settings"]})],
        **plots(drawn, _possible(result), captions(result), WIDE),
    )


def _possible(result: dict[str, Any]) -> dict[str, str]:
    """Return the plots that such a target can have."""
    target = result["target"]
    never = {"members": target["members"] == 1, "work": target["stopping"] is None}
    return {name: title for name, title in FIGURES.items() if not never.get(name, False)}


def captions(result: dict[str, Any]) -> dict[str, str]:
    """Say under each plot how to read it."""
    curve, norm = result["security_curve"] or {}, result["threat"]["norm"]
    members = (result["members"] or {}).get("images", result["data"]["images"])
    return {
        "attacks": "With its 95 % interval. The worst case counts an image as wrong if any attack broke it, so it lies "
        "at or below every attack; attacks on the ensemble in a colour of their own.",
        "curve": f"{curve.get('images', 0)} test images at every radius, under {curve.get('attack')} alone. A sound "
        "attack takes accuracy down to chance and below.",
        "distances": "As found by attacks that look for the smallest change rather than one inside eps; an upper bound "
        "of the true distance. Images that are wrong when clean are not drawn; the median counts them as 0.",
        "members": f"Accuracy in percent on {members} images: clean ones, and those made on one member, answered by "
        "each. The diagonal is a member's own robust accuracy; values near it mean that one attack fools all.",
        "work": "Mean over all images under each attack; dotted: clean images. What stopping early "
        "saves under attack is what the longest bar leaves of it.",
        "examples": "Each image with its label \u2192 the answer; wrong answers in colour. Middle row: what was "
        f"added (blue) or taken away (red), at full colour {'eps' if norm == 'linf' else 'the largest change shown'}.",
    }
