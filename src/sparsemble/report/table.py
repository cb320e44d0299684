"""The table model: columns and rows that become a table in the terminal, in Markdown or on a page."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Generic, TypeVar, final

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

R = TypeVar("R")
Interval = tuple[float, float, float]
"""Low, value, high, each in [0, 1]."""


def escape(text: str) -> str:
    """Return text for HTML, in which a percent sign keeps to its number."""
    return html.escape(text).replace(" %", "\u00a0%")


@final
@dataclass(frozen=True)
class Column(Generic[R]):
    """A column of a table."""

    title: str
    cell: Callable[[R], str]
    """Row to the text of its cell."""
    meaning: str = ""
    """Shown on a page when the pointer rests on the title."""
    group: str = ""
    """Heading over neighbouring columns; a unit after a comma is that of all of them."""
    short: str | None = ""
    """Title in the terminal if it differs; None: not shown in the terminal."""
    left: bool = False
    """Whether the column holds text; numbers stand to the right."""
    note: Callable[[R], str] | None = None
    """Row to a smaller text below the cell."""
    interval: Callable[[R], Interval] | None = None
    """Row to an interval, on a page drawn as a bar beside the cell."""
    css: Callable[[R], str] | None = None
    """Row to the classes of the cell on a page."""

    @property
    def full_title(self) -> str:
        """Title for tables without groups: with the group's name or unit where the title alone is ambiguous."""
        name, _, unit = self.group.partition(", ")
        title = f"{name} {self.title}" if self.title.startswith("batch") or name == "training" else self.title
        return f"{title}, {unit}" if unit and unit not in title else title


@final
@dataclass(frozen=True)
class Table(Generic[R]):
    """Columns, rows, and how rows stand out."""

    columns: Sequence[Column[R]]
    rows: Sequence[R]
    caption: str = ""
    """A note below the table."""
    colour: Callable[[R], str] | None = None
    """Row to the CSS variable of the dot before its first cell and of its interval."""
    strong: Callable[[R], bool] = lambda row: False
    rule_above: Callable[[R], bool] = lambda row: False
    """Whether a line separates a row from the one before."""

    def terminal(self, title: str = "", caption: Text | None = None) -> TerminalTable:
        """Return the table for a terminal of 80 columns or more, with a title above and a caption below it."""
        table = TerminalTable(
            title=Text(title) if title else None,
            caption=caption,
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            title_justify="left",
            caption_justify="left",
            title_style="bold",
            caption_style="",
        )
        columns = [column for column in self.columns if column.short is not None]
        for column in columns:
            title = column.short or column.title
            table.add_column(Text(title), justify="left" if column.left else "right", overflow="fold")
        for i, row in enumerate(self.rows):
            end = any(map(self.rule_above, self.rows[i + 1 : i + 2]))
            texts = [column.cell(row) for column in columns]
            cells = [Text(t if c.left else t.replace(" ", "\u00a0")) for c, t in zip(columns, texts, strict=True)]
            table.add_row(*cells, style="bold" if self.strong(row) else None, end_section=end)
        return table

    def markdown(self) -> str:
        """Return the table in Markdown, with its caption."""
        rule = ["---" if column.left else "---:" for column in self.columns]
        rows = [[self._with_note(column, row) for column in self.columns] for row in self.rows]
        lines = [[column.full_title for column in self.columns], rule, *rows]
        text = "".join("| " + " | ".join(map(_markdown_cell, cells)) + " |\n" for cells in lines)
        return text + (f"\n{self.caption}\n" if self.caption else "")

    def _with_note(self, column: Column[R], row: R) -> str:
        note = column.note(row) if column.note else ""
        text = column.cell(row) + (f" ({note})" if note else "")
        return f"**{text}**" if text and column is self.columns[0] and self.strong(row) else text

    def html(self) -> str:
        """Return the table for a page (`templates/table.html`)."""
        from sparsemble.report.page import fill

        groups = [column.group for column in self.columns]
        starts = [i for i in range(1, len(groups)) if groups[i] and groups[i] != groups[i - 1]]
        return fill("table.html", table=self, groups=self._groups(), starts=starts, bars=self._bars())

    def _groups(self) -> list[tuple[str, int]]:
        """Return the headings over the columns with their widths, in order; none if there are no groups."""
        runs = groupby(self.columns, lambda column: column.group)
        groups = [(name, sum(2 if column.interval else 1 for column in columns)) for name, columns in runs]
        return groups if any(name for name, _ in groups) else []

    def _bars(self) -> dict[str, Any]:
        """Return the scale in percent on which intervals are drawn, and each row's three positions on it in [0, 1]."""
        intervals = [column.interval(row) for column in self.columns if column.interval for row in self.rows]
        low = 10 * math.floor(10 * min((interval[0] for interval in intervals), default=0))
        high = max(10 * math.ceil(10 * max((interval[2] for interval in intervals), default=1)), low + 10)
        scaled = [[round((100 * value - low) / (high - low), 4) for value in interval] for interval in intervals]
        return {"low": low, "high": high, "positions": scaled}


def _markdown_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
