"""How the networks of a run were trained: tables, and what went wrong on the way."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparsemble.report.formatting import percent, sentence
from sparsemble.report.summary import SHORT_NAMES

Trainings = Mapping[str, Sequence[Mapping[str, Any]]]
"""The epochs of each training (docs/summary.md)."""


class Column(NamedTuple):
    """A column of the table of trainings."""

    title: str
    meaning: str


COLUMNS = (
    Column("epochs", "that were kept"),
    Column("first loss", "on training images, mean of the first epoch"),
    Column("last loss", "on training images, mean of the last epoch"),
    Column("most robust epoch", "by accuracy on held-out images; the later of equal ones"),
    Column("held-out clean %", "in that epoch"),
    Column("held-out robust %", "in that epoch"),
    Column("went back", "how often training went wrong and went back"),
)
EPOCH_COLUMNS = ("epoch", "loss", "held-out clean %", "held-out robust %", "learning rate")


def training_rows(trainings: Trainings) -> list[tuple[str, list[str]]]:
    """Return a row for each training that was measured: its name here, and the cells of `COLUMNS`."""
    rows = []
    for name, records in trainings.items():
        measured = [record for record in records if record["held_out_robust"] is not None]
        if not measured:
            continue
        best = max(measured, key=lambda record: (record["held_out_robust"], record["epoch"]))
        cells = [
            str(len(records)),
            f"{records[0]['loss']:.3f}",
            f"{records[-1]['loss']:.3f}",
            str(best["epoch"]),
            percent(best["held_out_clean"]),
            percent(best["held_out_robust"]),
            str(sum(len(sentences(record)) for record in records)),
        ]
        rows.append((name, cells))
    return rows


def epoch_rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of `EPOCH_COLUMNS` for every epoch of a training; empty where nothing was measured."""
    return [
        [
            str(record["epoch"]),
            f"{record['loss']:.3f}",
            *(
                "" if share is None else percent(share)
                for share in (record["held_out_clean"], record["held_out_robust"])
            ),
            f"{record['learning_rate']:.3g}",
        ]
        for record in records
    ]


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Return what went wrong before an epoch was kept, and what ended the training after it."""
    stopped = record.get("stopped")
    return [*(record.get("rolled_back") or []), *([stopped] if stopped else [])]


def marks(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return where on an axis of epochs training went back: between the last good epoch and the next."""
    again = [record["epoch"] - 0.5 for record in records if record.get("rolled_back")]
    return again + [record["epoch"] + 0.5 for record in records if record.get("stopped")]


def taken_back(trainings: Trainings) -> str:
    """Say where trainings went wrong and went back; empty if none did."""
    found = [
        sentence(f"{SHORT_NAMES[name]}: {text}")
        for name, records in trainings.items()
        for record in records
        for text in sentences(record)
    ]
    return " ".join(["Dotted lines: training went back.", *found]) if found else ""
