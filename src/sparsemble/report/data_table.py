"""What a data set holds, before any work."""

from collections.abc import Sequence

import torch

from sparsemble.data.dataset import Dataset, Split
from sparsemble.data.file_summary import FileSummary
from sparsemble.report.formatting import plural
from sparsemble.report.table import Column, Table

COLOURS = {1: "grey", 3: "colour"}
NAMED_CLASSES = 8
NAMED = 3
"""Files that are named of each kind."""


def data_table(data: Dataset) -> Table[tuple[str, str]]:
    """Return what a data set holds: classes, images, imbalance; of files also sizes, unreadable ones, duplicates."""
    held_out = len(data.selection) + len(data.calibration)
    splits = (data.train, data.selection, data.calibration, data.test)
    counts = torch.stack([_counts(split, len(data.classes)) for split in splits]).sum(0)
    channels, height, width = data.shape
    names = ", ".join(data.classes[:NAMED_CLASSES]) + (", ..." if len(data.classes) > NAMED_CLASSES else "")
    rows = {
        "classes": f"{len(data.classes)}: {names}",
        "images": f"{len(data.train):,} to train, {held_out:,} held out, {len(data.test):,} to test",
        "images of a class": _imbalance(data.classes, counts),
        "size": f"{width} x {height} pixels, {COLOURS.get(channels, f'{channels} channels')}",
        **(_file_rows(data.files) if data.files else {}),
    }
    columns: list[Column[tuple[str, str]]] = [
        Column("data", lambda row: row[0], left=True),
        Column("value", lambda row: row[1], left=True),
    ]
    return Table(columns, list(rows.items()))


def _counts(split: Split, classes: int) -> torch.Tensor:
    return split.labels.cpu().bincount(minlength=classes)


def _imbalance(classes: Sequence[str], counts: torch.Tensor) -> str:
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    most, least = int(counts[largest]), int(counts[smallest])
    if most == least:
        return f"{most:,} each"
    ratio = f", {most / least:.1f} times as many" if least else ""
    return f"{least:,} ({classes[smallest]}) to {most:,} ({classes[largest]}){ratio}"


def _file_rows(files: FileSummary) -> dict[str, str]:
    (low, median, high) = (f"{width} x {height}" for width, height in files.sizes)
    several = f"{low} to {high} pixels, median {median}"
    rows = {"size of the files": f"{low} pixels each" if low == high else several}
    if files.unreadable:
        named = ", ".join(f"{name} ({reason})" for name, reason in files.unreadable[:NAMED])
        rows["unreadable, left out"] = f"{len(files.unreadable):,}: {named}" + _more(len(files.unreadable))
    found = f"{plural(files.duplicates, 'file')} in {plural(files.groups, 'group')}, never in two splits"
    rows["duplicates"] = found if files.duplicates else "none found"
    if files.removed:
        named = ", ".join(f"{name} (is {other})" for name, other in files.removed[:NAMED])
        rows["left out of the test"] = f"{len(files.removed):,} as they are in training: {named}" + _more(
            len(files.removed)
        )
    return rows


def _more(count: int) -> str:
    return ", ..." if count > NAMED else ""
