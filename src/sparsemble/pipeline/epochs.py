"""The table of epochs that a person watches while networks train."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

LAST = 6
"""Epochs shown of a training that runs alone; of several side by side, the last one each."""
COLUMNS = ("epoch", "loss", "clean %", "robust %", "learning rate", "s / epoch")


def epochs_table(trainings: Mapping[str, Sequence[dict[str, Any]]]) -> Table | None:
    """Return the last epochs of each training, by its title; None where none has finished an epoch."""
    shown = {title: records for title, records in trainings.items() if records}
    if not shown:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("training", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for title, records in shown.items():
        for i, record in enumerate(records[-LAST:] if len(shown) == 1 else records[-1:]):
            table.add_row("" if i else title, *cells(record))
    return table


def cells(record: Mapping[str, Any]) -> list[str]:
    """Return an epoch's numbers as text; held-out accuracies are there when it was measured."""
    shares = [record.get(name) for name in ("held_out_clean", "held_out_robust")]
    return [
        f"{record['epoch']}/{record['epochs']}",
        f"{record['loss']:.3f}",
        *("" if share is None else f"{100 * share:.1f}" for share in shares),
        f"{record['learning_rate']:.3g}",
        f"{record['seconds']:.1f}",
    ]


def line(title: str, record: Mapping[str, Any]) -> str:
    """Write an epoch as one line of a log."""
    epoch, loss, clean, robust, rate, seconds = cells(record)
    measured = f", held-out clean {clean} %, robust {robust} %" if clean else ""
    return f"  {title}: epoch {epoch}, loss {loss}{measured}, learning rate {rate}, {seconds} s"
