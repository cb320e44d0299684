"""What a data set holds, before any work."""

import torch

from sparsemble.data.dataset import Dataset, Split
from sparsemble.data.file_summary import FileSummary
from sparsemble.report.formatting import plural
from sparsemble.report.table import Column, Table

NAMED = 3
"""Files that are named of each kind."""


def data_table(data: Dataset) -> Table[tuple[str, str]]:
    """Return what a data set holds: classes, images, imbalance; of files also sizes, unreadable ones, duplicates."""
    held_out = len(data.selection) + len(data.calibration)
    splits = (data.train, data.selection, data.calibration, data.test)
    counts = torch.stack([_counts(split, len(data.classes)) for split in splits]).sum(0)
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    ratio = f", {counts[largest] / counts[smallest]:.1f} times as many" if counts[smallest] else ""
    names = ", ".join(data.classes[:8]) + (", ..." if len(data.classes) > 8 else "")
    rows = {
        "classes": f"{len(data.classes)}: {names}",
        "images": f"{len(data.train):,} to train, {held_out:,} held out, {len(data.test):,} to test",
        "smallest class": f"{data.classes[smallest]}, {plural(int(counts[smallest]), 'image')}",
        "largest class": f"{data.classes[largest]}, {plural(int(counts[largest]), 'image')}{ratio}",
        "size": f"{data.shape[2]} x {data.shape[1]} pixels, {data.shape[0]} channels",
        **(_file_rows(data.files) if data.files else {}),
    }
    columns: list[Column[tuple[str, str]]] = [
        Column("data", lambda row: row[0], left=True),
        Column("value", lambda row: row[1], left=True),
    ]
    return Table(columns, list(rows.items()))


def _counts(split: Split, classes: int) -> torch.Tensor:
    return split.labels.cpu().bincount(minlength=classes)


def _file_rows(files: FileSummary) -> dict[str, str]:
    (low, median, high) = (f"{width} x {height}" for width, height in files.sizes)
    rows = {"size of the files": f"{low} to {high} pixels, median {median}"}
    if files.unreadable:
        named = ", ".join(f"{name} ({reason})" for name, reason in files.unreadable[:NAMED])
        rows["unreadable, left out"] = f"{len(files.unreadable):,}: {named}" + _more(len(files.unreadable))
    if files.duplicates:
        rows["duplicates"] = (
            f"{plural(files.duplicates, 'file')} in {plural(files.groups, 'group')}, never in two splits"
        )
    if files.removed:
        named = ", ".join(f"{name} (is {other})" for name, other in files.removed[:NAMED])
        rows["left out of the test"] = f"{len(files.removed):,} as they are in training: {named}" + _more(
            len(files.removed)
        )
    return rows


def _more(count: int) -> str:
    return ", ..." if count > NAMED else ""
