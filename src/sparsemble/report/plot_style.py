"""Colours and markers of the rows, and how a plot becomes SVG: the same bytes each time, legible on light and dark.

All else about the style stands in `sparsemble.mplstyle`.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparsemble.report.page import Plot

STYLE = "sparsemble.report.sparsemble"
"""The style file, as matplotlib names it."""
INK, RULE = "#767c83", "#a3a9af"
"""Text and axes, and grid lines; both stand in the style file, too."""
HALF, WIDE = 4.9, 10.0
"""Widths in inches: two halves stand side by side on the page."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


class Look(NamedTuple):
    """How a row is drawn and named in plots and terminals."""

    colour: str
    marker: str
    label: str
    strong: bool = False


LOOKS = {
    "dense": Look("#6f767d", "s", "dense parent"),
    "small_dense": Look("#cc79a7", "v", "small dense"),
    "harp": Look("#0072b2", "D", "one HARP model"),
    "best_member": Look("#56b4e9", "^", "best sub-model"),
    "ensemble_static": Look("#e69f00", "o", "ensemble, all members"),
    "ensemble_dynamic": Look("#d55e00", "*", "ensemble, dynamic", strong=True),
    "ensemble": Look("#d55e00", "*", "ensemble"),
}
"""Of the rows of a run and of the ensemble in training; colours for colour-blind eyes (Okabe & Ito 2008)."""
SCORE_COLOURS = ("#332288", "#44aa99", "#999933", "#882255", "#aa4499", "#117733")
"""Scores share no colour with a row (Tol's muted scheme)."""
PALETTE = (
    *(LOOKS[r].colour for r in ("ensemble_dynamic", "harp", "ensemble_static", "small_dense", "best_member", "dense")),
    *SCORE_COLOURS,
)
"""For rows of any name."""
THEME = {
    INK: "--plot-ink",
    RULE: "--plot-rule",
    **{look.colour: f"--row-{row}" for row, look in LOOKS.items() if row != "ensemble"},
    **{colour: f"--score-{i}" for i, colour in enumerate(SCORE_COLOURS)},
}
"""The variables by which the page gives each colour a shade for light and one for dark paper."""


def new_figure(width: float, height: float, **options: Any) -> tuple["Figure", Any]:
    """Return a figure of so many inches and its axes, with options of `subplots`; global state is not touched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(**options)


def svg(plot: "Callable[[], Figure]") -> str:
    """Draw a plot in the package's style and return it as SVG text."""
    from matplotlib import style

    with style.context(STYLE), warnings.catch_warnings():
        # Text is stored as text: the reader's fonts draw the glyphs that ours lack.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        buffer = io.StringIO()
        plot().savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": "sparsemble"})
    text = buffer.getvalue()
    return re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", FONT, text[text.index("<svg") :])


def for_page(drawing: str, plot: "Plot") -> str:
    """Make SVG part of a page: colours that follow the scheme, identifiers of its own, a name for screen readers."""
    for colour, variable in THEME.items():
        drawing = drawing.replace(colour, f"var({variable})")
    for reference in ('id="', "url(#", 'href="#'):
        drawing = drawing.replace(reference, f"{reference}{plot.name}-")
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{plot.title}" ', 1)
