"""What all pages share: the template engine, plots, interval strips, settings."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sparsemble.core.artifacts import write_bytes


def fill(template: str, **values: Any) -> str:
    """Fill one of the page templates of this room."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(lambda name: (resources.files("sparsemble.report") / name).read_text("utf-8")),
    )
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    return environment.get_template(template).render(**values)


def plots(
    drawn: Mapping[str, str], titles: Mapping[str, str], captions: Mapping[str, str], wide: Collection[str]
) -> dict[str, Any]:
    """Return what `plots.html` draws.

    Args:
        drawn: SVG text by plot.
        titles: of all plots, in the order of the page.
        captions: of the plots drawn.
        wide: plots as wide as the page.
    """
    from sparsemble.report.plot_style import for_page

    entries = [
        (name, title, captions[name], for_page(drawn[name], name, title))
        for name, title in titles.items()
        if name in drawn
    ]
    absent = [title for name, title in titles.items() if name not in drawn]
    return {"plots": entries, "wide": wide, "absent": absent}


def plots_in_markdown(drawn: Mapping[str, str], titles: Mapping[str, str], captions: Mapping[str, str]) -> list[str]:
    """Return a section for each plot."""
    return [f"## {titles[name]}\n\n![{titles[name]}](figures/{name}.svg)\n\n{captions[name]}\n" for name in drawn]


def write_plots(drawn: Mapping[str, str], out: Path) -> None:
    """Write `figures/*.svg`."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        write_bytes(folder / f"{name}.svg", svg.encode())


def strip(rows: Mapping[str, tuple[float, Sequence[float]]]) -> dict[str, Any]:
    """Return the scale in percent on which a table draws intervals, and each row's place on it in [0, 1].

    Args:
        rows: an accuracy and its interval, by row.
    """
    low = 10 * math.floor(10 * min(interval[0] for _, interval in rows.values()))
    high = max(10 * math.ceil(10 * max(interval[1] for _, interval in rows.values())), low + 10)
    places = {
        name: [round((100 * value - low) / (high - low), 4) for value in (interval[0], middle, interval[1])]
        for name, (middle, interval) in rows.items()
    }
    return {"low": low, "high": high, "places": places}


def flat(settings: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Return nested settings as dotted names and values, as `--set` takes them."""
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found += flat(value, f"{above}{name}.")
        else:
            found.append((above + name, json.dumps(value, ensure_ascii=False)))
    return found
