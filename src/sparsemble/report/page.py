"""The page model: a headline, facts and sections that become one HTML file and its Markdown twin."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, final

from sparsemble.core.artifacts import write_bytes
from sparsemble.core.results import EvaluationResult, RunSummary, StudyResult
from sparsemble.report.table import Table, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Code(NamedTuple):
    """Commands or settings, as they are typed."""

    text: str


class Side(NamedTuple):
    """Blocks side by side where the page is wide."""

    blocks: "Sequence[Block]"


class Details(NamedTuple):
    """Blocks behind a click."""

    summary: str
    blocks: "Sequence[Block]"


Block: TypeAlias = str | Code | Mapping[str, object] | Side | Details | Table[Any]
"""A part of a section; a string is a paragraph, a mapping is a list of names with their values."""


class Section(NamedTuple):
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


class Plot(NamedTuple):
    """A figure of a page."""

    name: str
    """Of its file in `figures/`."""
    title: str
    caption: str
    """How to read it."""
    draw: "Callable[[], Figure] | None"
    """None: there are no numbers for it; the page then names it as left out."""
    wide: bool = False
    """As wide as the page."""


@final
@dataclass(frozen=True, kw_only=True)
class Page:
    """The contents of a report, in order of appearance."""

    title: str
    kind: str
    """run, evaluation, comparison or study."""
    kicker: Sequence[str]
    """Short labels above the headline: name, data, seed."""
    alarms: Sequence[str] = ()
    """Sentences: reasons not to rely on the headline; the part before a colon is printed bold."""
    headline: tuple[str, str, str]
    """A sentence in three parts; the middle one is the number."""
    comparison: str = ""
    """What to compare the headline with."""
    aside: Sequence[Section] = ()
    """Beside the headline: the threat model, the checks."""
    key_figures: Sequence[tuple[str, str, str]] = ()
    """The few numbers at the top: value, what it is, what to compare it with."""
    sections: Sequence[Section]
    """The first one stands above the plots, the others below."""
    plots: Sequence[Plot] = ()

    def write(self, folder: Path, markdown_name: str) -> None:
        """Write `index.html`, which loads nothing, the Markdown twin and `figures/*.svg`."""
        from sparsemble.report.plot_style import for_page, svg

        (folder / "figures").mkdir(parents=True, exist_ok=True)
        drawn = []
        for plot in self.plots:
            if plot.draw:
                drawing = svg(plot.draw)
                write_bytes(folder / "figures" / f"{plot.name}.svg", drawing.encode())
                drawn.append((plot, for_page(drawing, plot)))
        absent = [plot.title for plot in self.plots if not plot.draw]
        text = fill("page.html", page=self, plots=drawn, absent=absent, html=_html)
        write_bytes(folder / "index.html", text.encode())
        write_bytes(folder / markdown_name, self.markdown().encode())

    def markdown(self) -> str:
        """Return the page in Markdown; plots are links to `figures/`."""
        parts = [f"# {self.title}\n", f"**{''.join(self.headline)}**\n"]
        if self.comparison:
            parts.append(f"{self.comparison}\n")
        if self.alarms:
            parts.append("".join(f"- **{alarm}**\n" for alarm in self.alarms))
        parts += [markdown(block) for section in self.aside for block in section.blocks]
        first, *later_sections = [
            f"## {section.title}\n\n" + "\n".join(map(markdown, section.blocks)) for section in self.sections
        ]
        plots = [f"## {p.title}\n\n![{p.title}](figures/{p.name}.svg)\n\n{p.caption}\n" for p in self.plots if p.draw]
        return "\n".join([*parts, first, *plots, *later_sections])


def _html(block: Block) -> str:
    match block:
        case str():
            return f'<p class="note">{escape(block)}</p>'
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Side(blocks):
            return '<div class="side">' + "\n".join(f"<div>{_html(inner)}</div>" for inner in blocks) + "</div>"
        case Details(summary, blocks):
            inner = "\n".join(map(_html, blocks))
            return f"<details><summary>{escape(summary)}</summary>\n{inner}\n</details>"
        case Table():
            return block.html()
    items = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>\n" for name, value in block.items())
    return f'<dl class="terms">\n{"".join(items)}</dl>'


def markdown(block: Block) -> str:
    """Return a block in Markdown; it ends with a line break."""
    match block:
        case str():
            return f"{block}\n"
        case Code(text):
            return "".join(f"    {line}\n" for line in text.splitlines())
        case Side(blocks):
            return "\n".join(map(markdown, blocks))
        case Details(summary, blocks):
            return f"<details><summary>{summary}</summary>\n\n" + "\n".join(map(markdown, blocks)) + "\n</details>\n"
        case Table():
            return block.markdown()
    return "".join(f"- {name}: {value}\n" for name, value in block.items())


def fill(template: str, **values: Any) -> str:
    """Fill one of the templates."""
    import jinja2
    from markupsafe import Markup

    folder = resources.files("sparsemble.report") / "templates"
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
    )
    environment.filters["text"] = lambda text: Markup(escape(text))
    return environment.get_template(template).render(**values)


def settings_text(settings: Mapping[str, Any], above: str = "") -> str:
    """Return nested settings as lines of dotted names and values, as `--set` takes them."""
    return "\n".join(
        settings_text(value, f"{above}{name}.")
        if isinstance(value, dict) and value
        else f"{above}{name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in settings.items()
    )


def provenance(result: RunSummary | EvaluationResult | StudyResult, versions: Mapping[str, str]) -> list[Block]:
    """Return the command that reproduces a result, the machine, and the versions of packages and source."""
    machine = {name.replace("_", " "): value for name, value in result.machine.items()}
    return [Code(result.command), Side([machine, {**versions, "source": result.source or "unknown"}])]
