"""How every plot looks, and how it becomes SVG: the same bytes each time, legible on light and dark paper."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "dense": "#6f767d",
    "small_dense": "#cc79a7",
    "harp": "#0072b2",
    "best_member": "#56b4e9",
    "ensemble_static": "#e69f00",
    "ensemble_dynamic": "#d55e00",
    "ensemble": "#d55e00",
}
"""One colour a row in every plot, apart for colour-blind eyes (Okabe & Ito 2008)."""
MARKERS = {
    "dense": "s",
    "small_dense": "v",
    "harp": "D",
    "best_member": "^",
    "ensemble_static": "o",
    "ensemble_dynamic": "*",
}
SCORE_COLOURS = ("#332288", "#44aa99", "#999933", "#882255", "#aa4499", "#117733")
"""Scores share no colour with a row (Tol's muted scheme)."""
SCORE_MARKERS = ("o", "s", "D", "^", "v", "P")
INK = "#767c83"
"""Words and axes: legible on white and on black."""
RULE = "#a3a9af"
"""Grid lines."""

HALF, WIDE = 4.9, 10.0
"""Widths in inches: two halves stand side by side on the page."""

THEME = {
    INK: "--plot-ink",
    RULE: "--plot-rule",
    **{colour: f"--row-{row}" for row, colour in COLOURS.items() if row != "ensemble"},
    **{colour: f"--score-{i}" for i, colour in enumerate(SCORE_COLOURS)},
}
"""The variables by which the page gives each colour a shade for light and one for dark paper."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sparsemble",  # the same identifiers each time
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $5
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "grid.color": RULE,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "image.composite_image": False,  # images keep their own pixels
}


def new_figure(width: float, height: float, columns: int = 1, **options: Any) -> tuple["Figure", Any]:
    """Make a figure without touching global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(1, columns, **options)


def bars(value: float, interval: Sequence[float]) -> list[list[float]]:
    """Return the error bars of an accuracy in percent; at 0 and 1 an end may lie on the wrong side by rounding."""
    low, high = interval
    return [[max(0.0, 100 * (value - low))], [max(0.0, 100 * (high - value))]]


def draw(plot: Callable[[], "Figure"]) -> str:
    """Draw a plot in the house style and return it as SVG text."""
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        # Words are stored as text: the reader's fonts draw what ours lack.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        buffer = io.StringIO()
        plot().savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": "sparsemble"})
    text = buffer.getvalue()
    return re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", FONT, text[text.index("<svg") :])


def for_page(svg: str, name: str, title: str) -> str:
    """Make a plot part of a page: colours that follow the scheme, identifiers of its own, a name for screen readers."""
    for colour, variable in THEME.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = svg.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def spread(values: list[float], gap: float) -> list[float]:
    """Move values apart until each two differ by `gap` or more, in order, as little as pairs allow."""
    order = sorted(range(len(values)), key=values.__getitem__)
    blocks: list[list[float]] = []  # of each block: sum of wished starts, members
    for place, i in enumerate(order):
        blocks.append([values[i] - place * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, members = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += members
    starts = [total / members for total, members in blocks for _ in range(int(members))]
    moved = dict(zip(order, (start + place * gap for place, start in enumerate(starts)), strict=True))
    return [moved[i] for i in range(len(values))]
